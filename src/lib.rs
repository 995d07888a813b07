//! vmdeploy runs long jobs on capacity that can be taken away.

pub mod api;
pub mod backoff;
pub mod clock;
pub mod commands;
pub mod config;
pub mod controller;
pub mod driver;
pub mod health;
pub mod image;
pub mod leadership;
pub mod metrics;
pub mod names;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod yaml;
