//! The way in, as OpenSSH's own client sees it, and as one sees it that behaves badly. The segment is this
//! machine, the members are addresses of it.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::*;

/// A way in, and somebody with a key.
struct World {
    directory: tempfile::TempDir,
    jump: Arc<Jump>,
    at: SocketAddr,
}

fn keygen(directory: &Path, name: &str, kind: &str) -> String {
    let path = directory.join(name);
    let mut keygen = std::process::Command::new("ssh-keygen");
    keygen.args(["-q", "-t", kind, "-N", "", "-C", "a b", "-f"]).arg(&path);
    assert!(keygen.status().unwrap().success());
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = ["ed25519", "rsa", "ecdsa"].map(|kind| keygen(directory.path(), kind, kind));
        keygen(directory.path(), "foreign", "ed25519");
        let key = HostKey::of_job("secret", &"uid".into());
        let member = |index: u8| Target {
            names: vec![format!("pi-{index}"), format!("member-{index}")],
            address: Ipv4Addr::new(127, 0, 0, 1 + index),
        };
        let keys: Vec<String> = keys.into_iter().chain(["no key".into()]).collect();
        let jump = Jump::new("pi", &key, &keys, vec![member(0), member(1)], Arc::new(Door::here()));
        let (jump, listener) = (Arc::new(jump), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let at = listener.local_addr().unwrap();
        let own = jump.clone();
        tokio::spawn(async move { own.serve(listener).await });
        let known = format!("[127.0.0.1]:{} {}\n", at.port(), key.public());
        std::fs::write(directory.path().join("known"), known).unwrap();
        Self { directory, jump, at }
    }

    /// `ssh` to the way in, with a key and further arguments.
    fn ssh(&self, key: &str, arguments: &[&str]) -> Command {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]);
        ssh.args(["-o", &format!("UserKnownHostsFile={}", path("known")), "-i", &path(key)]);
        ssh.args(["-p", &self.at.port().to_string()]).args(arguments).arg("whoever@127.0.0.1");
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        ssh
    }

    async fn run(&self, key: &str, arguments: &[&str], command: &[&str]) -> Output {
        let ran = self.ssh(key, arguments).args(command).output();
        tokio::time::timeout(Duration::from_secs(30), ran).await.expect("ssh hangs").unwrap()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A member's port, where everything comes back in the end, with a last word.
async fn listener(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                all.extend_from_slice(b"bye");
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    port
}

#[tokio::test]
async fn members_are_reached_by_name_and_address_with_each_kind_of_key() {
    let world = World::new().await;
    let (one, two) = (listener("127.0.0.1").await, listener("127.0.0.2").await);
    let long: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    for (key, host, port) in
        [("ed25519", "pi-0", one), ("rsa", "127.0.0.2", two), ("ecdsa", "member-1", two), ("ed25519", "PI-1", two)]
    {
        let mut ssh = world.ssh(key, &["-W", &format!("{host}:{port}")]).stdin(Stdio::piped()).spawn().unwrap();
        let (mut input, sent) = (ssh.stdin.take().unwrap(), long.clone());
        let sending = tokio::spawn(async move { input.write_all(&sent).await });
        let output = tokio::time::timeout(Duration::from_secs(60), ssh.wait_with_output()).await.unwrap().unwrap();
        sending.await.unwrap().unwrap();
        assert!(output.status.success(), "{host}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.strip_suffix(b"bye") == Some(&long), "{host}: {} bytes", output.stdout.len());
    }
    assert_eq!(world.jump.way.channels.available_permits(), CHANNELS, "a connection is still held");
}

#[tokio::test]
async fn d3_nothing_but_members_is_reached() {
    let world = World::new().await;
    let port = listener("127.0.0.1").await;
    for (to, words) in [
        (format!("127.0.0.3:{port}"), "127.0.0.3 is no member of job pi".to_owned()),
        (format!("localhost:{port}"), "localhost is no member of job pi".to_owned()),
        ("pi-0:1".into(), "port 1 of pi-0 was not reached: Connection refused".to_owned()),
    ] {
        let refused = world.run("ed25519", &["-W", &to], &[]).await;
        assert!(!refused.status.success() && text(&refused).contains(&words), "{to}: {}", text(&refused));
    }
}

#[tokio::test]
async fn d3_there_are_no_shells_commands_files_and_no_other_forwardings() {
    let world = World::new().await;
    for (arguments, command) in
        [(&[][..], &[][..]), (&["-tt"], &[]), (&[], &["id"]), (&["-A"], &["ssh-add", "-l"]), (&["-s"], &["sftp"])]
    {
        let refused = world.run("ed25519", arguments, command).await;
        let said = text(&refused);
        assert!(said.contains("only the way in to the members of job pi") && said.contains("pi-0, pi-1"), "{said}");
        assert_eq!(refused.status.code(), Some(1), "{arguments:?} {command:?}");
    }
    let back = world.run("ed25519", &["-N", "-R", "0:127.0.0.1:22", "-o", "ExitOnForwardFailure=yes"], &[]).await;
    assert!(!back.status.success() && text(&back).contains("remote port forwarding failed"), "{}", text(&back));
}

#[tokio::test]
async fn d3_only_the_jobs_keys_let_in() {
    let world = World::new().await;
    let foreign = world.run("foreign", &["-W", "pi-0:22"], &[]).await;
    assert!(text(&foreign).contains("Permission denied (publickey)"), "{}", text(&foreign));
    let none = world.run("foreign", &["-o", "PreferredAuthentications=password,keyboard-interactive"], &[]).await;
    assert!(text(&none).contains("Permission denied (publickey)"), "{}", text(&none));
    // another server at this address is no way in
    let key = HostKey::of_job("secret", &"another".into());
    let known = format!("[127.0.0.1]:{} {}\n", world.at.port(), key.public());
    std::fs::File::create(world.directory.path().join("known")).unwrap().write_all(known.as_bytes()).unwrap();
    let other = world.run("ed25519", &["-W", "pi-0:22"], &[]).await;
    assert!(text(&other).contains("HOST IDENTIFICATION HAS CHANGED"), "{}", text(&other));
}

#[tokio::test]
async fn strangers_take_nobodys_place_for_long() {
    let world = World::new().await;
    let mut silent = Vec::new();
    for _ in 0..STRANGERS {
        let mut stream = TcpStream::connect(world.at).await.unwrap();
        // it is served: its version comes
        stream.read_exact(&mut [0; 8]).await.unwrap();
        silent.push(stream);
    }
    let mut late = TcpStream::connect(world.at).await.unwrap();
    assert_eq!(late.read(&mut [0; 8]).await.unwrap(), 0, "one too many");
    drop(silent.split_off(1));
    let until = std::time::Instant::now() + GRACE;
    while world.jump.strangers.available_permits() < STRANGERS - 1 {
        assert!(std::time::Instant::now() < until, "those who went are not forgotten");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // one that says nothing is cut
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(GRACE + Duration::from_secs(5), silent[0].read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "it is still connected");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.jump.strangers.available_permits(), STRANGERS);
    assert_eq!(world.jump.visitors.available_permits(), VISITORS);
}
