//! Segments of real nodes: namespaces of this machine, joined by a cable.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use super::*;
use crate::{driver::network::Peer, names::Mac};

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs on a thread in a network namespace of its own: a node.
fn on_a_node<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let node = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    node.join().unwrap()
}

fn path_of(namespace: &fs::File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

fn within<T>(namespace: &fs::File, work: impl FnOnce() -> T) -> T {
    let here = fs::File::open("/proc/thread-self/ns/net").unwrap();
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let result = work();
    nix::sched::setns(&here, CloneFlags::CLONE_NEWNET).unwrap();
    result
}

fn plan(vni: u32, node: u8, peers: &[u8]) -> SegmentPlan {
    let address = |node: u8| Ipv4Addr::new(192, 0, 2, node);
    let peers = peers.iter().map(|peer| Peer { mac: mac(*peer), node: address(*peer) }).collect();
    let (door, door_mac) = (Ipv4Addr::new(10, 64, 0, 8 + node), Mac([0x02, 0xdd, 0, 0, 0, node]));
    SegmentPlan { vni, port: 14789, mtu: 1450, node: address(node), door: (door, 28), door_mac, peers }
}

/// Of the card that stands for a guest on a node.
fn mac(node: u8) -> Mac {
    Mac([0x02, 0xaa, 0, 0, 0, node])
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A guest stands behind the bridge: the other end of a cable with its address.
fn put_guest(segment: &Segment, node: u8) -> fs::File {
    let room = segment_namespace(segment);
    let guest = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // it says nothing unasked
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap()
    });
    let guest = guest.join().unwrap();
    let path = path_of(&guest);
    within(&room, || {
        ip(&format!("link add g0 type veth peer name eth1 address {} netns {path}", mac(node)));
        ip("link set g0 master br0 mtu 1450 up");
    });
    within(&guest, || {
        ip(&format!("addr add 10.64.0.{node}/28 dev eth1"));
        ip("link set eth1 mtu 1450 up");
    });
    guest
}

fn segment_namespace(segment: &Segment) -> fs::File {
    fs::File::from(segment.namespace.try_clone().unwrap())
}

/// Two nodes on a cable.
fn two_nodes() -> [fs::File; 2] {
    let open = || fs::File::open("/proc/thread-self/ns/net").unwrap();
    let far = on_a_node(open);
    let path = path_of(&far);
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip(&format!("link add e0 type veth peer name e0 netns {path}"));
    ip("addr add 192.0.2.1/24 dev e0");
    ip("link set e0 up");
    within(&far, || {
        ip("addr add 192.0.2.2/24 dev e0");
        ip("link set e0 up");
    });
    [open(), far]
}

#[test]
fn guests_on_two_nodes_hear_each_other_and_no_other_incarnation() {
    on_a_node(|| {
        let [near, far] = two_nodes();
        let a = block_on(make(plan(7, 1, &[2]))).unwrap();
        let b = within(&far, || block_on(make(plan(7, 2, &[1])))).unwrap();
        // an older incarnation of the second member, alive on the same node
        let old = within(&far, || block_on(make(plan(6, 2, &[1])))).unwrap();
        let (guest, peer, late) = (put_guest(&a, 1), put_guest(&b, 2), put_guest(&old, 2));
        let server = within(&guest, || TcpListener::bind("10.64.0.1:7").unwrap());
        let echo = thread::spawn(move || {
            let (mut stream, from) = server.accept().unwrap();
            let mut text = [0; 5];
            stream.read_exact(&mut text).unwrap();
            stream.write_all(&text).unwrap();
            from.ip().to_string()
        });
        let to = "10.64.0.1:7".parse().unwrap();
        let short = Duration::from_millis(700);
        let refused = within(&late, || TcpStream::connect_timeout(&to, short));
        assert!(refused.is_err(), "an older incarnation is heard");
        let mut stream = within(&peer, || TcpStream::connect_timeout(&to, Duration::from_secs(60))).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        assert_eq!((&text, echo.join().unwrap().as_str()), (b"hello", "10.64.0.2"));
        drop(near);
    });
}

/// A job that began with another one's generation has its addresses and hardware addresses.
#[test]
fn b11_two_jobs_with_the_same_addresses_on_the_same_nodes_hear_each_their_own() {
    on_a_node(|| {
        let [_near, far] = two_nodes();
        let jobs = [7u8, 8].map(|vni| {
            let a = block_on(make(plan(vni.into(), 1, &[2]))).unwrap();
            let b = within(&far, || block_on(make(plan(vni.into(), 2, &[1])))).unwrap();
            let (guest, peer) = (put_guest(&a, 1), put_guest(&b, 2));
            let server = within(&guest, || TcpListener::bind("10.64.0.1:7").unwrap());
            thread::spawn(move || {
                for _ in 0..2 {
                    server.accept().unwrap().0.write_all(&[vni]).unwrap();
                }
            });
            (vni, peer, a, b, guest)
        });
        for (vni, peer, ..) in jobs.iter().chain(&jobs) {
            let to = "10.64.0.1:7".parse().unwrap();
            let mut stream = within(peer, || TcpStream::connect_timeout(&to, Duration::from_secs(60))).unwrap();
            let mut said = [0];
            stream.read_exact(&mut said).unwrap();
            assert_eq!(said, [*vni], "the other job's member answered");
        }
    });
}

#[test]
fn the_agent_reaches_the_guest_of_its_own_node() {
    on_a_node(|| {
        let [_near, far] = two_nodes();
        let a = block_on(make(plan(9, 1, &[2]))).unwrap();
        let b = within(&far, || block_on(make(plan(9, 2, &[1])))).unwrap();
        let guests = [put_guest(&a, 1), put_guest(&b, 2)];
        let servers = guests.each_ref().map(|guest| within(guest, || TcpListener::bind("0.0.0.0:22").unwrap()));
        for (segment, node) in [(a, 1), (b, 2)] {
            let (_tap, door) = segment.split();
            let to = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, node), 22);
            let stream = block_on(async { door.connect(to, Duration::from_secs(60)).await.map(drop) });
            stream.unwrap();
            let (_, from) = servers[usize::from(node) - 1].accept().unwrap();
            assert_eq!(from.ip(), Ipv4Addr::new(10, 64, 0, 8 + node));
        }
    });
}

#[test]
fn what_is_meant_for_one_door_does_not_go_to_all_nodes() {
    on_a_node(|| {
        let [_near, far] = two_nodes();
        // the third node is not there: who sends to it asks for it
        for (vni, known) in [(7, true), (8, false)] {
            let mut there = plan(vni, 2, &[1, 3]);
            let here = plan(vni, 1, &[2]);
            if known {
                there.peers.push(Peer { mac: here.door_mac, node: here.node });
            }
            let a = block_on(make(here)).unwrap();
            let b = within(&far, || block_on(make(there))).unwrap();
            let guest = put_guest(&b, 2);
            let server = within(&guest, || TcpListener::bind("0.0.0.0:22").unwrap());
            let (_tap, door) = a.split();
            let to = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, 2), 22);
            block_on(async { door.connect(to, Duration::from_secs(60)).await.map(drop) }).unwrap();
            server.accept().unwrap();
            let asked = within(&far, || ip("neigh show 192.0.2.3"));
            assert_eq!(asked.is_empty(), known, "{asked}");
        }
    });
}

#[test]
fn nothing_is_left_on_the_node() {
    on_a_node(|| {
        let [_near, far] = two_nodes();
        // by their names: the cable of one that has just been made is plugged in a moment later
        let devices =
            || ip("-o link").lines().filter_map(|line| Some(line.split(": ").nth(1)?.to_owned())).collect::<Vec<_>>();
        let before = devices();
        for _ in 0..3 {
            let segment = block_on(make(plan(5, 1, &[2]))).unwrap();
            assert_eq!(devices(), before, "a device outside the segment");
            let room = segment_namespace(&segment);
            let entries = within(&room, || {
                String::from_utf8(Command::new("bridge").args(["fdb", "show", "dev", VXLAN]).output().unwrap().stdout)
            });
            let entries = entries.unwrap();
            assert!(entries.contains("02:aa:00:00:00:02 dst 192.0.2.2"), "{entries}");
            assert!(entries.contains("00:00:00:00:00:00 dst 192.0.2.2"), "{entries}");
            let details = within(&room, || ip(&format!("-d link show {VXLAN}")));
            assert!(details.contains("nolearning") && details.contains("mtu 1450"), "{details}");
            drop((segment, room));
            // the kernel takes it down in the background
            let gone = (0..6000).any(|_| {
                thread::sleep(Duration::from_millis(10));
                let again = "link add probe type vxlan id 5 local 192.0.2.1 dstport 14789".split(' ');
                Command::new("ip").args(again).output().unwrap().status.success()
            });
            assert!(gone, "the VXLAN is still there");
            ip("link del probe");
        }
        drop(far);
    });
}

#[test]
fn a_path_that_is_too_narrow_is_refused_with_the_remedy() {
    on_a_node(|| {
        let [_near, _far] = two_nodes();
        ip("link set e0 mtu 1400");
        let error = block_on(make(plan(3, 1, &[2]))).unwrap_err().to_string();
        assert!(error.contains("1400") && error.contains("1500") && error.contains("jobNetwork.mtu"), "{error}");
        let error = block_on(make(plan(3, 77, &[2]))).unwrap_err();
        assert!(matches!(error, NetworkError::NoInterface(_)), "{error}");
    });
}
