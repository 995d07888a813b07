//! Tokens of nodes that join, in memory. That a request may be signed is written down.

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    super::{
        ClusterError,
        joins::{Answer, JoinOffer, Joins},
    },
    FakeCluster,
};

impl FakeCluster {
    /// The tokens that are worth something.
    pub fn tokens(&self) -> Vec<JoinOffer> {
        let now = self.clock.now();
        self.lock().tokens.values().filter(|offer| offer.expires > now).cloned().collect()
    }

    /// What was answered to requests so far.
    pub fn answers(&self) -> Vec<(Answer, String)> {
        self.lock().answers.clone()
    }
}

#[async_trait]
impl Joins for FakeCluster {
    async fn offer(&self, offer: &JoinOffer) -> Result<(), ClusterError> {
        self.write("offer")?.tokens.entry(offer.token.id.clone()).or_insert_with(|| offer.clone());
        Ok(())
    }

    async fn withdraw(&self, id: &str) -> Result<(), ClusterError> {
        self.write("withdraw")?.tokens.remove(id);
        Ok(())
    }

    async fn answer(&self, _: &ObjectMeta, answer: Answer, message: &str) -> Result<(), ClusterError> {
        self.write("answer")?.answers.push((answer, message.into()));
        Ok(())
    }
}
