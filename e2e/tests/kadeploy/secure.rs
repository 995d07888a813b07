//! A server as it is by default: TLS by a certificate that it made for itself, and users with passwords; and headers
//! with names other than the usual.

use vmdeploy::driver::kadeploy::{KadeployError, contract};

use crate::{
    environments,
    raw::{self, Account, Address, PREFIX},
    world::{Server, client},
};

#[tokio::test]
async fn a_server_with_a_certificate_of_its_own_is_known_by_its_pin() {
    let test = "a_server_with_a_certificate_of_its_own_is_known_by_its_pin";
    let server = Server::secure().await;
    let address = &server.address;
    assert!(address.url.starts_with("https://") && matches!(server.account, Account::Basic(..)));

    let told = raw::ask(address, &Account::Nobody, "GET", "/auth_headers_prefix", None).await;
    assert_eq!((told.status, told.text.trim()), (200, address.prefix.as_str()));
    let known: Vec<String> = serde_json::from_value(server.get("/nodes?list").await.json()).unwrap();
    assert!(server.nodes.iter().all(|node| known.contains(node)), "{known:?}");

    // by the password, or by the header of that name
    let usual = Address { prefix: PREFIX.into(), ..address.clone() };
    let by_header = Account::Header(server.user.clone());
    let wrong = Account::Basic(server.user.clone(), "wrong".into());
    for (address, account, good) in [
        (address, &server.account, true),
        (address, &by_header, true),
        (&usual, &by_header, false),
        (address, &wrong, false),
    ] {
        let reply = raw::ask(address, account, "GET", "/nodes", None).await;
        assert_eq!(reply.status, if good { 200 } else { 401 }, "{account:?}: {reply:?}");
        let said = client(address, account).workflows().await;
        assert!(if good { said.is_ok() } else { matches!(said, Err(KadeployError::Credentials(_))) }, "{said:?}");
    }

    let other = Address { pin: Some(format!("sha256:{}", "0".repeat(64))), ..address.clone() };
    let error = client(&other, &server.account).workflows().await.unwrap_err();
    let KadeployError::Unreachable(text) = &error else { panic!("{error}") };
    assert!(text.contains("set sites.*.kadeploy.pin or ca"), "{text}");

    environments::are_recorded(&server, test).await;
    environments::are_named(&server, test).await;
    contract::holds(&server).await;
}
