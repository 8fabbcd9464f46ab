//! What monitoring and a browser see: `/metrics`, `/healthz`, `/readyz` and a status page. Reads
//! only: nothing can be changed over HTTP. Bound to loopback unless configured otherwise.

mod page;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::schedule::cron::Schedule;
use crate::schedule::dispatcher::{Standing, Status};
use crate::values::{JobName, Name};

/// What the pages are made of.
#[derive(Clone)]
pub struct Sight {
    /// The daemon's instance.
    pub instance: String,
    /// How things stand now; asked for each page, for a reload changes it.
    pub view: Arc<dyn Fn() -> View + Send + Sync>,
    /// The metrics.
    pub metrics: PrometheusHandle,
}

/// How things stand at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// Every database's standing.
    pub states: Vec<Status>,
    /// How long ago each dispatcher's loop was last seen alive.
    pub silent_for: Vec<Duration>,
    /// Every job, its database and its schedule.
    pub jobs: Vec<(JobName, Name, Schedule)>,
}

/// A loop that was not seen alive for so long has stopped.
const DEAD_LOOP: Duration = Duration::from_secs(90);

/// Serves the pages until `stop` is cancelled.
///
/// # Errors
/// When the address cannot be bound: named, with its cause.
pub async fn serve(address: SocketAddr, sight: Sight, stop: CancellationToken) -> Result<(), std::io::Error> {
    let listener = TcpListener::bind(address).await?;
    let routes = Router::new()
        .route("/", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .with_state(sight);
    tokio::spawn(async move {
        let served = axum::serve(listener, routes)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(error = %error, "the HTTP server has ended; jobs go on");
        }
    });
    Ok(())
}

async fn metrics(State(sight): State<Sight>) -> impl IntoResponse {
    crate::telemetry::metrics::look();
    for (job, _, schedule) in &(sight.view)().jobs {
        let next = schedule.next_after(Timestamp::now()).map(|slot| slot.scheduled_for);
        crate::telemetry::metrics::job_due(job.as_str(), next);
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        sight.metrics.render(),
    )
}

/// The process and its loops are alive, whatever the databases do.
async fn health(State(sight): State<Sight>) -> (StatusCode, &'static str) {
    if (sight.view)()
        .silent_for
        .iter()
        .all(|silent_for| *silent_for < DEAD_LOOP)
    {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "a dispatcher's loop has stopped\n")
    }
}

/// Every database can be used: led by us or by another, or a standby that waits.
async fn ready(State(sight): State<Sight>) -> (StatusCode, String) {
    let mut trouble = Vec::new();
    for status in &(sight.view)().states {
        if matches!(status.standing, Standing::Connecting | Standing::Unreachable(_)) {
            trouble.push(format!("{} {}\n", status.database, String::from(&status.standing)));
        }
    }
    if trouble.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, trouble.concat())
    }
}

async fn status(State(sight): State<Sight>) -> Html<String> {
    Html(page::render(&sight, Timestamp::now()))
}
