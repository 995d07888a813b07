//! The beginning of a gather: starts all nodes at once, and hears what each has.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use nix::ifaddrs::getifaddrs;
use tokio::{
    io::AsyncWriteExt as _,
    process::Child,
    sync::mpsc::{self, UnboundedSender},
    time::timeout,
};

use super::{
    shell::{Shells, Started},
    wire::{Begin, Found, Order, Report},
};

/// So many remote shells are started at a time.
const AT_ONCE: usize = 64;
/// For a node that runs to say what it has.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something that was heard.
#[derive(Debug)]
pub(super) enum Word {
    /// A node reports.
    Node(usize, Report),
    /// Its remote shell has ended, for this reason.
    Gone(usize, String),
}

/// A node that runs.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) orders: UnboundedSender<Order>,
    /// Where others reach it.
    pub(super) address: SocketAddr,
    /// Where it reaches this process.
    pub(super) here: SocketAddr,
    pub(super) room: u64,
    pub(super) files: Vec<Found>,
    /// Ends with this.
    pub(super) child: Child,
}

/// This machine's addresses, those that only it can use if there are no others.
pub(super) fn addresses(port: u16) -> Vec<SocketAddr> {
    let all: Vec<IpAddr> = getifaddrs().into_iter().flatten().filter_map(|link| ip(&link)).collect();
    let usable = |ip: &&IpAddr| !ip.is_loopback();
    let some = if all.iter().any(|ip| !ip.is_loopback()) { all.iter().filter(usable).copied().collect() } else { all };
    some.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

fn ip(link: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = link.address?;
    if let Some(four) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(four.ip()));
    }
    let six = address.as_sockaddr_in6()?.ip();
    // those of a link mean nothing elsewhere
    (!six.is_unicast_link_local()).then_some(IpAddr::V6(six))
}

/// Starts all of them; each with what it is told, or why it does not run.
pub(super) async fn all(
    shells: &Shells,
    orders: Vec<(String, Begin)>,
    words: &UnboundedSender<Word>,
) -> Vec<Result<Peer, String>> {
    let each = orders.into_iter().map(|(host, begin)| one(shells, host, begin, words.clone()));
    stream::iter(each).buffered(AT_ONCE).collect().await
}

async fn one(shells: &Shells, host: String, begin: Begin, words: UnboundedSender<Word>) -> Result<Peer, String> {
    let (number, token) = (begin.node, begin.token.clone());
    let mut started = shells.start(&host).await?;
    started.order(&Order::Begin(begin)).await.map_err(|error| error.to_string())?;
    let hello = async {
        loop {
            match started.report().await {
                Some(Report::Hello { files, room, port, here, seen }) => return Some((files, room, port, here, seen)),
                Some(_) => {}
                None => return None,
            }
        }
    };
    let hello = timeout(PATIENCE, hello).await.map_err(|_| "it does not say what it has".to_owned())?;
    let Some((files, room, port, here, seen)) = hello else {
        return Err(started.said.last().await.unwrap_or_else(|| "it has ended".into()));
    };
    let (Some(here), Some(seen)) = (here, seen) else {
        return Err("it reaches this machine by none of its addresses".into());
    };
    let address = SocketAddr::new(seen, port);
    shells.spread.add(address, &token);
    let Started { child, mut input, mut output, mut said, given } = started;
    drop(given);
    let (orders, mut waiting) = mpsc::unbounded_channel::<Order>();
    tokio::spawn(async move {
        while let Some(order) = waiting.recv().await {
            let Ok(mut line) = serde_json::to_vec(&order) else { return };
            line.push(b'\n');
            // a node that is gone is heard of by its output
            if input.write_all(&line).await.is_err() || input.flush().await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok(Some(line)) = output.next_line().await {
            if let Ok(report) = serde_json::from_str(&line)
                && words.send(Word::Node(number, report)).is_err()
            {
                return;
            }
        }
        let reason = said
            .last()
            .await
            .map_or("its remote shell has ended".to_owned(), |said| format!("its remote shell has ended: {said}"));
        let _ = words.send(Word::Gone(number, reason));
    });
    Ok(Peer { orders, address, here, room, files, child })
}
