//! What ssh and scp are called with, as programs in their place see it.

use std::{io::ErrorKind, os::unix::fs::PermissionsExt as _};

use super::*;

fn guest() -> Guest {
    Guest {
        member: "pi/1".parse().unwrap(),
        namespace: "team".into(),
        uid: "3f2b8a10".into(),
        program: "/opt/it's 100%/vmdeploy".into(),
        known: "/home/a b/.cache/vmdeploy/known_hosts".into(),
    }
}

/// The arguments with which a program of this name, the first in the path, is called.
fn called(command: &mut Command) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let stub = directory.path().join(command.get_program());
    std::fs::write(&stub, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755)).unwrap();
    command.env("PATH", format!("{}:/usr/bin:/bin", directory.path().display()));
    let output = loop {
        match command.output() {
            // another thread's child has the program open for writing
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
            output => break output.unwrap(),
        }
    };
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

const OPTIONS: [&str; 10] = [
    "-o",
    r"ProxyCommand='/opt/it'\''s 100%%/vmdeploy' connect --namespace team pi/1 22",
    "-o",
    "HostKeyAlias=vmdeploy-3f2b8a10-1",
    "-o",
    "UserKnownHostsFile=\"/home/a b/.cache/vmdeploy/known_hosts\"",
    "-o",
    "StrictHostKeyChecking=accept-new",
    "-o",
    "CheckHostIP=no",
];

#[test]
fn ssh_reaches_the_guest_by_this_program() {
    let guest = guest();
    let arguments = called(guest.program("ssh").arg(guest.host()).args(["uptime", "-p"]));
    assert_eq!(arguments[..10], OPTIONS);
    assert_eq!(arguments[10..], ["root@pi-1", "uptime", "-p"]);
}

#[test]
fn scp_is_told_which_side_is_the_guest() {
    let guest = guest();
    let places = ["pi/1:/data/x", "out:1"].map(|text| match text {
        "out:1" => Place::Here(text.into()).for_scp(&guest),
        other => other.parse::<Place>().unwrap().for_scp(&guest),
    });
    let arguments = called(guest.program("scp").arg("--").args(places));
    assert_eq!(arguments[..10], OPTIONS);
    assert_eq!(arguments[10..], ["--", "root@pi-1:/data/x", "./out:1"]);
}

#[test]
fn places_are_told_apart() {
    let member = |text: &str| text.parse::<Member>().unwrap();
    assert_eq!("pi:/a:b".parse(), Ok(Place::Guest(member("pi"), "/a:b".into())));
    assert_eq!("pi/2:x".parse(), Ok(Place::Guest(member("pi/2"), "x".into())));
    for here in ["x", "/a:b", "./pi:x", "a/b"] {
        assert_eq!(here.parse(), Ok(Place::Here(here.into())));
    }
    assert!("pi/x:y".parse::<Place>().is_err());
}

#[test]
fn known_guests_are_in_the_users_cache() {
    let cache = |own: Option<&str>, home: Option<&str>| cache(own.map(Into::into), home.map(Into::into));
    assert_eq!(cache(Some("/c"), Some("/h")).unwrap(), Path::new("/c/vmdeploy"));
    assert_eq!(cache(Some(""), Some("/h")).unwrap(), Path::new("/h/.cache/vmdeploy"));
    assert!(cache(None, None).is_err());
}
