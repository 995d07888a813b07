//! What a link carries of a program's bytes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::nodes::Nodes;

const PORT: u16 = 5001;

/// Bytes a second that these nodes get into another one together, a connection each.
pub fn goodput(nodes: &Nodes, from: Range<usize>, into: usize, filling: Duration) -> Result<f64> {
    let to = SocketAddrV4::new(Nodes::address(into), PORT);
    let listener = nodes.on(into, || TcpListener::bind(to))??;
    let count = from.len();
    let server = thread::spawn(move || {
        let readers: Vec<_> = (0..count)
            .map(|_| {
                let (mut stream, _) = listener.accept()?;
                Ok(thread::spawn(move || {
                    let (mut piece, mut count) = (vec![0; 256 << 10], 0);
                    while let Ok(got) = stream.read(&mut piece) {
                        if got == 0 {
                            break;
                        }
                        count += got;
                    }
                    count
                }))
            })
            .collect::<std::io::Result<_>>()?;
        Ok::<usize, std::io::Error>(readers.into_iter().map(|reader| reader.join().unwrap_or_default()).sum())
    });
    let begun = Instant::now();
    thread::scope(|scope| {
        let senders: Vec<_> = from
            .map(|node| {
                scope.spawn(move || {
                    let mut stream = nodes.on(node, || TcpStream::connect(to))??;
                    let piece = vec![0x5a; 64 << 10];
                    while begun.elapsed() < filling {
                        stream.write_all(&piece)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().map_err(|_| anyhow!("a sender panicked"))?)
    })?;
    let count = server.join().map_err(|_| anyhow!("the receiver panicked"))??;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
