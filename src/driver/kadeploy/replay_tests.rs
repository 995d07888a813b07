//! Recordings of a real Kadeploy 3.3.11, and a server that answers with their very bytes.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{config::SiteConfig, driver::site::Credentials};

/// Where the recordings are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/driver/kadeploy/recorded");

/// A recorded reply.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    pub(super) status: u16,
    pub(super) code: Option<u32>,
    pub(super) body: Vec<u8>,
    request: String,
    head: String,
}

impl Recorded {
    fn parse(text: &str) -> Self {
        let (request, reply) = text.split_once("<<< reply\n").unwrap();
        let (request, _) = request.strip_prefix(">>> request\n").unwrap().split_once("\n\n").unwrap();
        let (head, body) = reply.split_once("\n\n").unwrap();
        // one line end was added
        let body = body.strip_suffix('\n').unwrap().as_bytes().to_vec();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(header("Content-Length:").unwrap().parse(), Ok(body.len()));
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            code: header("X-Application-Error-Code:").map(|code| code.parse().unwrap()),
            request: request.to_owned(),
            head: head.to_owned(),
            body,
        }
    }

    /// A reply that nobody recorded.
    pub(super) fn made(status: u16, headers: &str, body: &str) -> Self {
        let head = format!("HTTP/1.1 {status} Made\n{headers}Content-Length: {}\nConnection: close", body.len());
        Self { status, code: None, body: body.as_bytes().to_vec(), request: String::new(), head }
    }

    /// The line of the request, without the version.
    pub(super) fn line(&self) -> &str {
        self.request.lines().next().unwrap().trim_end_matches(" HTTP/1.1")
    }

    /// A header of the request.
    pub(super) fn sent(&self, name: &str) -> &str {
        self.request.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap()
    }
}

/// Names of all files of recordings.
pub(super) fn files() -> Vec<String> {
    let names = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// The text of one of them.
pub(super) fn text(file: &str) -> String {
    fs::read_to_string(Path::new(FOLDER).join(file)).unwrap()
}

/// All recordings whose names begin so.
pub(super) fn all(prefix: &str) -> BTreeMap<String, Recorded> {
    let mut all = BTreeMap::new();
    for file in files().iter().filter(|file| file.starts_with(prefix)) {
        if let Some(name) = file.strip_suffix(".http") {
            all.insert(name.to_owned(), Recorded::parse(&text(file)));
        }
    }
    assert!(!all.is_empty(), "no recording begins with {prefix}");
    all
}

/// One recording.
pub(super) fn recorded(name: &str) -> Recorded {
    all(name).remove(name).unwrap()
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) head: String,
    pub(super) body: serde_json::Value,
}

type Answer = Arc<dyn Fn(&Seen) -> Recorded + Send + Sync>;

/// A server that answers each request with a reply.
pub(super) struct Replay {
    pub(super) seen: Arc<Mutex<Vec<Seen>>>,
    url: String,
}

impl Replay {
    /// One that looks only at a request's line, without the version.
    pub(super) async fn start(answer: impl Fn(&str) -> Recorded + Send + Sync + 'static) -> Self {
        Self::reading(move |seen: &Seen| answer(&seen.line)).await
    }

    /// One that looks at all of a request.
    pub(super) async fn reading(answer: impl Fn(&Seen) -> Recorded + Send + Sync + 'static) -> Self {
        crate::tls::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answer, seen): (Answer, Arc<Mutex<Vec<Seen>>>) = (Arc::new(answer), Arc::default());
        let all = seen.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                serve(connection, &answer, &all).await;
            }
        });
        Self { seen, url }
    }

    /// The site's configuration with this server, and more of its section.
    pub(super) fn site(&self, more: &str) -> SiteConfig {
        let text = format!(
            "kind: oar2\nurl: http://oar\nuids: {{alice: 1000}}\nnodes: {{dummy-1.test: worker-1}}\nkadeploy: {{url: '{}/'{more}}}\n",
            self.url
        );
        serde_yaml::from_str(&text).unwrap()
    }

    /// Request lines so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect()
    }

    /// The last request.
    pub(super) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

pub(super) fn alice() -> Credentials {
    Credentials::Header { user: "alice".into() }
}

async fn serve(mut connection: TcpStream, answer: &Answer, all: &Mutex<Vec<Seen>>) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut part = [0; 4096];
        match connection.read(&mut part).await.unwrap() {
            0 => return,
            count => bytes.extend_from_slice(&part[..count]),
        }
        let text = String::from_utf8(bytes.clone()).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let seen = Seen { line, head, body: serde_json::from_str(&body).unwrap_or_default() };
    let reply = answer(&seen);
    all.lock().unwrap().push(seen);
    let mut sent = reply.head.replace('\n', "\r\n").into_bytes();
    sent.extend_from_slice(b"\r\n\r\n");
    sent.extend_from_slice(&reply.body);
    connection.write_all(&sent).await.unwrap();
}
