//! How operator, kget and the commands for people reach the API server.

use ::kube::{Config, config::InferConfigError};

/// The configuration found around the process, for clients that repeat no request by themselves: what
/// fails is tried again as a whole, by a controller or a person who knows what else there is to do.
pub async fn config() -> Result<Config, InferConfigError> {
    let mut config = Config::infer().await?;
    config.default_retry = false;
    Ok(config)
}
