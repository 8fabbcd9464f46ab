//! A client for a bucket. Its configuration is read anew for each store that is opened, because the
//! SDK never reads a changed credentials file again.

use std::fs::File;
use std::path::Path;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ProvideCredentials, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use url::Url;

use super::Limits;
use super::failure::chain;
use crate::store::{S3Settings, StoreError, StoreErrorKind};

/// A client, and what it talks to.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// For messages; no secrets.
    pub(super) endpoint: String,
    /// Whether it is AWS itself, which checks SHA-256 sums where others know MD5 only.
    pub(super) is_aws: bool,
}

/// Reads credentials and region, and makes a client. Nothing is sent to the bucket.
pub(super) async fn connect(settings: &S3Settings, limits: &Limits) -> Result<Connection, StoreError> {
    let operation = format!("open s3://{}", settings.bucket);
    let timeouts = TimeoutConfig::builder().connect_timeout(limits.connect).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        // It does not see bodies in memory; the store's own limits cover both directions.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // A checksum is given where one is wanted; the default one is refused by other servers.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &settings.endpoint {
        check_endpoint(&operation, endpoint)?;
        loader = loader.endpoint_url(endpoint);
    }
    // Servers other than AWS have regions in name only.
    let region = settings
        .region
        .as_deref()
        .or(settings.endpoint.as_ref().map(|_| "us-east-1"));
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = &settings.credentials_file {
        check_file(&operation, file)?;
        loader = loader.credentials_provider(credentials_from(file, settings.profile.as_deref()));
    }
    let config = loader.load().await;
    if config.region().is_none() {
        return Err(StoreError::permanent(operation, "no region is known")
            .with_remedy("set `region` of the store, or AWS_REGION in the service's environment"));
    }
    check_credentials(&operation, &config).await?;
    Ok(Connection {
        endpoint: config.endpoint_url().map_or_else(
            || format!("AWS in {}", config.region().map_or("no region", Region::as_ref)),
            origin,
        ),
        is_aws: config.endpoint_url().is_none(),
        client: Client::from_conf(
            aws_sdk_s3::config::Builder::from(&config)
                .force_path_style(settings.path_style)
                .build(),
        ),
    })
}

fn credentials_from(file: &Path, profile: Option<&str>) -> ProfileFileCredentialsProvider {
    let files = EnvConfigFiles::builder()
        .with_file(EnvConfigFileKind::Credentials, file)
        .build();
    ProfileFileCredentialsProvider::builder()
        .profile_files(files)
        .profile_name(profile.unwrap_or("default"))
        .build()
}

/// The SDK would say only that it found no credentials.
fn check_file(operation: &str, file: &Path) -> Result<(), StoreError> {
    File::open(file).map(drop).map_err(|error| {
        StoreError::new(
            StoreErrorKind::Denied,
            operation,
            format!("cannot read the credentials file {}: {error}", file.display()),
        )
        .with_remedy("correct `credentials_file`, or let the service's user read it")
    })
}

async fn check_credentials(operation: &str, config: &SdkConfig) -> Result<(), StoreError> {
    let no_credentials = |cause: String| {
        StoreError::new(StoreErrorKind::Denied, operation, cause)
            .with_remedy("set `credentials_file` or `profile` of the store, or give the service's environment a role")
    };
    let provider = config
        .credentials_provider()
        .ok_or_else(|| no_credentials("there are no credentials".to_owned()))?;
    match provider.provide_credentials().await {
        Ok(_) => Ok(()),
        Err(error) => Err(no_credentials(chain(&error))),
    }
}

fn check_endpoint(operation: &str, endpoint: &str) -> Result<(), StoreError> {
    let usable = Url::parse(endpoint).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
    });
    if usable {
        return Ok(());
    }
    // Not repeated: it may hold a password.
    Err(
        StoreError::permanent(operation, "`endpoint` is not the address of a server")
            .with_remedy("write `endpoint` as \"https://host:port\", without a user, password or query"),
    )
}

fn origin(endpoint: &str) -> String {
    Url::parse(endpoint).map_or_else(|_| "the endpoint".to_owned(), |url| url.origin().ascii_serialization())
}
