//! The verb `demo`.

use super::{Exit, Failure};
use crate::demo;

pub(super) async fn demo(events: u32) -> Result<Exit, Failure> {
    match demo::run(events).await {
        Ok(true) => Ok(Exit::Green),
        Ok(false) => Ok(Exit::NotGreen),
        Err(error) => Err(Failure::new(Exit::Failed, error.to_string())),
    }
}
