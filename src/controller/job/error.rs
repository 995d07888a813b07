//! Why a pass could not observe or act. Waiting is never an error.

use crate::{
    api::Reason,
    driver::{DriverError, Retry, cluster::ClusterError, repository::RepositoryError},
    tls::TlsError,
};

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubernetes.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Something the plan relies on has vanished since it was made.
    #[error("{0}")]
    Vanished(String),
}

impl DriverError for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Cluster(error) => error.reason(),
            Self::Repository(error) => error.reason(),
            Self::Tls(_) => Reason::AgentFailed,
            Self::Vanished(_) => Reason::NotYet,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Cluster(error) => error.retry(),
            Self::Repository(error) => error.retry(),
            Self::Tls(_) => Retry::Bug,
            Self::Vanished(_) => Retry::After(std::time::Duration::from_secs(1)),
        }
    }
}
