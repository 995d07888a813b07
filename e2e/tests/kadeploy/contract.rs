//! The driver's client under its contract.

use vmdeploy::driver::kadeploy::contract;

use crate::{
    raw::{self, Account},
    world::{Server, needs, needs_simulator},
};

#[tokio::test]
async fn the_client_keeps_the_contract_of_deployment_servers() {
    let server = Server::find().await;
    contract::holds(&server).await;
    // parts of it
    if server.simulator.is_none() {
        needs_simulator("the_client_keeps_the_contract_of_deployment_servers");
    }
    if server.admin.is_none() {
        needs("the_client_keeps_the_contract_of_deployment_servers", "ADMIN");
    }
}

#[tokio::test]
async fn who_asks_is_somebody() {
    let server = Server::find().await;
    let nobody = raw::ask(&server.address, &Account::Nobody, "GET", "/nodes", None).await;
    assert_eq!(nobody.status, 401);
    assert!(nobody.header("www-authenticate").unwrap().starts_with("Basic realm="), "{nobody:?}");
    let wrong = Account::Basic("nobody".into(), "wrong".into());
    assert_eq!(raw::ask(&server.address, &wrong, "GET", "/nodes", None).await.status, 401);
    let prefix = raw::ask(&server.address, &Account::Nobody, "GET", "/auth_headers_prefix", None).await;
    assert_eq!((prefix.status, prefix.text.trim()), (200, server.address.prefix.as_str()));
    let version = raw::ask(&server.address, &Account::Nobody, "GET", "/version", None).await;
    assert!(version.text.trim().starts_with('3'), "{version:?}");
    if server.simulator.is_some() {
        let carol = Account::Basic("carol".into(), "secret".into());
        assert_eq!(raw::ask(&server.address, &carol, "GET", "/nodes", None).await.status, 200);
    }
}
