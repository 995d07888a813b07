//! The job's network: what its overlay costs between two nodes of a link of 1 Gbit/s (namespaces of this
//! machine on a cable), and on the test bed how soon an old connection speaks again after all members were
//! restored on other nodes.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Nodes, TestBed,
    job::{Counting, Job, nodes},
    rival::Rival,
    testbed::SYSTEM,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use vmdeploy::{
    driver::network::{Door, Peer, Segment, SegmentPlan, netlink},
    names::{Mac, agent_pod_name},
};

use crate::report::{Figure, Measured, at_least, figure};

/// Segments that are made.
const SEGMENTS: u8 = 20;
/// How long data is sent each time.
const SENDING: Duration = Duration::from_secs(2);
/// Runs of bare link and overlay, one after the other.
const RUNS: u32 = 3;
/// Words sent to and fro.
const WORDS: u32 = 2000;
/// Lives on the test bed.
const LIVES: u32 = 2;
const LIMIT: Duration = Duration::from_secs(300);
/// Rate of the link between the nodes.
const RATE: &str = "1gbit";

/// Measures. The figure from the test bed is left out, and said to be, where none is in the environment.
pub(crate) async fn measure() -> Result<Measured> {
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    let cable = Nodes::new(2, Some(RATE))?;
    eprintln!("segments ...");
    measured.figures.extend(segments(&cable).await?);
    eprintln!("bare link and overlay, {RUNS} times ...");
    measured.figures.extend(paths(&cable).await?);
    drop(cable);
    let Some(bed) = TestBed::find().await? else {
        measured.failed.push("restored_to_first_byte_s: no test bed in the environment (testbed env)".into());
        return Ok(measured);
    };
    let mut seconds = Vec::new();
    for number in 1..=LIVES {
        eprintln!("life {number} of {LIVES} on the test bed ...");
        match first_byte(&bed).await {
            Ok(sample) => seconds.push(sample),
            Err(error) => measured.failed.push(format!("life {number}: {error:#}")),
        }
        bed.clean();
    }
    measured.figures.extend(figure("restored_to_first_byte_s", &seconds, 0.5, "s", Some(1.0), None));
    Ok(measured)
}

/// Makes a node's segment; the seconds it took.
fn segment(nodes: &Nodes, own: u8, vni: u32) -> Result<(Segment, f64)> {
    let other = 1 - own;
    let mac = |node: u8| Mac([0x02, 0xbe, 0, 0, 0, node + 1]);
    let plan = SegmentPlan {
        vni,
        port: 14789,
        mtu: 1450,
        node: Nodes::address(own.into()),
        door: (door(own), 28),
        door_mac: mac(own),
        peers: vec![Peer { mac: mac(other), node: Nodes::address(other.into()) }],
    };
    nodes.on(own.into(), move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let begun = Instant::now();
        let made = runtime.block_on(netlink::make(plan))?;
        Ok((made, begun.elapsed().as_secs_f64()))
    })?
}

fn door(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 9 + node)
}

async fn segments(cable: &Nodes) -> Result<Vec<Figure>> {
    let mut milliseconds = Vec::new();
    for number in 1..=SEGMENTS {
        let (made, seconds) = segment(cable, 0, 100 + u32::from(number))?;
        milliseconds.push(seconds * 1000.0);
        drop(made);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(figure("overlay_setup_ms", &milliseconds, 0.5, "ms", Some(100.0), Some("one member's segment"))
        .into_iter()
        .collect())
}

/// Accepts one connection: what comes is counted for a time, or sent back.
fn serve(listener: TcpListener, echo: bool) -> JoinHandle<std::io::Result<u64>> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut piece, mut count) = (vec![0; 256 << 10], 0);
        loop {
            let got = stream.read(&mut piece)?;
            if got == 0 {
                return Ok(count);
            }
            count += got as u64;
            if echo {
                stream.write_all(&piece[..got])?;
            }
        }
    })
}

/// Bytes a second over a connection.
fn throughput(mut to: TcpStream, server: JoinHandle<std::io::Result<u64>>) -> Result<f64> {
    let piece = vec![0x5a; 256 << 10];
    let begun = Instant::now();
    while begun.elapsed() < SENDING {
        to.write_all(&piece)?;
    }
    drop(to);
    let count = server.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Median of the microseconds a word takes to and fro.
fn round_trip(mut to: TcpStream, server: JoinHandle<std::io::Result<u64>>) -> Result<f64> {
    to.set_nodelay(true)?;
    let mut word = [7; 64];
    let mut micros = Vec::new();
    for _ in 0..WORDS {
        let begun = Instant::now();
        to.write_all(&word)?;
        to.read_exact(&mut word)?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    drop(to);
    server.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    micros.sort_by(f64::total_cmp);
    Ok(micros[micros.len() / 2])
}

async fn paths(cable: &Nodes) -> Result<Vec<Figure>> {
    let (_tap_a, door_a) = segment(cable, 0, 900)?.0.split();
    let (_tap_b, door_b) = segment(cable, 1, 900)?.0.split();
    let (mut ratios, mut added) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut both = [(0.0, 0.0); 2];
        for (overlay, result) in [false, true].into_iter().zip(&mut both) {
            let (to, server) = connect(cable, overlay.then_some((&door_a, &door_b)), false).await?;
            let rate = throughput(to, server)?;
            let (to, server) = connect(cable, overlay.then_some((&door_a, &door_b)), true).await?;
            *result = (rate, round_trip(to, server)?);
        }
        let [bare, overlay] = both;
        ratios.push(overlay.0 / bare.0);
        added.push(overlay.1 - bare.1);
    }
    let ratio = figure("overlay_vs_bare_throughput", &ratios, 0.5, "ratio", Some(0.8), Some("link of 1 Gbit/s"));
    Ok(ratio.map(at_least).into_iter().chain(figure("overlay_added_rtt_us", &added, 0.5, "us", None, None)).collect())
}

/// A connection between the nodes, or between their segments, and what it is connected with.
async fn connect(
    cable: &Nodes,
    doors: Option<(&Door, &Door)>,
    echo: bool,
) -> Result<(TcpStream, JoinHandle<std::io::Result<u64>>)> {
    let listen = |at: Ipv4Addr| TcpListener::bind(SocketAddr::V4(SocketAddrV4::new(at, 5001)));
    let call = |to: Ipv4Addr| TcpStream::connect_timeout(&SocketAddrV4::new(to, 5001).into(), Duration::from_secs(5));
    if let Some((from, to)) = doors {
        let server = serve(to.within(move || listen(door(1))).await??, echo);
        return Ok((from.within(move || call(door(1))).await??, server));
    }
    let server = serve(cable.on(1, move || listen(Nodes::address(1)))??, echo);
    Ok((cable.on(0, move || call(Nodes::address(1)))??, server))
}

/// Seconds from the moment all restored members run to the first word on the connection they had before.
async fn first_byte(bed: &TestBed) -> Result<f64> {
    let counting = Counting { members: 2, talk: true, grace: 0, ticks: 220, ..Counting::default() };
    let namespace = bed.namespace("bench-network").await?;
    let job = Job::create(bed, &namespace, &counting.object("talk")?).await?;
    job.wait_tick(5, 2, LIMIT).await?;
    let next = job.get().await?.status.map_or(0, |status| status.snapshots.next_generation);
    job.wait_stored(next.saturating_sub(1), LIMIT).await?;
    let before = nodes(&job.get().await?);
    // the nodes stay taken: the members have to go to others
    let _rival = Rival::submit(bed, &before, Duration::from_secs(120))?;
    job.wait_runs(2, 2, LIMIT).await?;
    let after = nodes(&job.get().await?);
    ensure!(after.iter().all(|node| !before.contains(node)), "{after:?} after {before:?}: not other nodes");
    let mut ran = Vec::new();
    for member in 0..2 {
        ran.push(time_of(bed, &job, member, "the guest runs").await?);
    }
    // member 1 counts what has come back over the connection
    let word = time_of(bed, &job, 1, "job: tick ").await?;
    let all_ran = ran.into_iter().max().context("no members")?;
    job.delete(LIMIT).await?;
    Ok(word.duration_since(all_ran).as_secs_f64())
}

/// When a member's second agent first printed a line with these words.
async fn time_of(bed: &TestBed, job: &Job, member: u32, words: &str) -> Result<Timestamp> {
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), SYSTEM);
    let pod = agent_pod_name(&job.uid.as_str().into(), member, 2);
    let log = pods.logs(&pod, &LogParams { timestamps: true, ..LogParams::default() }).await?;
    let line = log.lines().find(|line| line.contains(words)).with_context(|| format!("{pod} never said: {words}"))?;
    Ok(line.split(' ').next().unwrap_or_default().parse()?)
}
