//! Images among the agents of a job: one that has a part of an image sends it on, and what comes to it later as soon as
//! it is there. Beside the bytes it says each second how far itself and those before it are, so that whoever fetches
//! from it hears that it is alive, and knows who is slow.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio_util::{
    codec::{Decoder, FramedRead},
    io::StreamReader,
};

use super::{AgentError, http::AgentHttp};
use crate::names::MemberIndex;

/// How often it is said.
pub const BEAT: Duration = Duration::from_secs(1);
/// Most bytes of an image that are sent at a time.
pub const PORTION: usize = 256 << 10;
/// Longest report: of the largest job.
const MAX_REPORT: usize = 256 << 10;
/// Before each frame: its kind, and its length.
const HEAD: usize = 5;
/// A part of the image.
const PART: u8 = 0;
/// How far all are that the sender knows of.
const REPORTS: u8 = 1;

/// Whom an agent fetches an image from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Nobody: it was there, or nobody was found so far.
    Nobody,
    /// The repository.
    Repository,
    /// The agent of a member.
    Member(MemberIndex),
}

/// How far an agent is with an image, as it says itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its member.
    pub member: MemberIndex,
    /// Bytes that it has.
    pub have: u64,
    /// Bytes a second that came last; absent as long as too few have come, and for one that had all.
    pub pace: Option<f64>,
    /// Whom it fetches from.
    pub from: Origin,
}

/// What comes from an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The next bytes.
    Part(Bytes),
    /// What it knows of those before it; itself first.
    Reports(Vec<Report>),
}

/// Bytes as they travel.
pub fn part(bytes: &[u8]) -> Bytes {
    frame(PART, bytes)
}

/// Reports as they travel.
pub fn reports(of: &[Report]) -> Bytes {
    frame(REPORTS, &serde_json::to_vec(of).unwrap_or_default())
}

fn frame(kind: u8, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD + body.len());
    bytes.put_u8(kind);
    bytes.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    bytes.put_slice(body);
    bytes.freeze()
}

/// Reads frames: what a node sends is not trusted, and none is longer than it may be.
#[derive(Debug, Default)]
struct Frames;

impl Decoder for Frames {
    type Item = Frame;
    type Error = std::io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, std::io::Error> {
        let Some((head, _)) = from.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [kind, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        let most = match kind {
            PART => PORTION,
            REPORTS => MAX_REPORT,
            _ => return Err(std::io::Error::other(format!("a frame of an unknown kind, {kind}"))),
        };
        if length > most {
            return Err(std::io::Error::other(format!("a frame of {length} bytes")));
        }
        if from.len() < HEAD + length {
            from.reserve(HEAD + length - from.len());
            return Ok(None);
        }
        from.advance(HEAD);
        let body = from.split_to(length).freeze();
        if kind == PART {
            return Ok(Some(Frame::Part(body)));
        }
        serde_json::from_slice(&body).map(|reports| Some(Frame::Reports(reports))).map_err(std::io::Error::other)
    }
}

/// Frames as they come; silence is for the receiver to judge.
pub type FrameStream = BoxStream<'static, Result<Frame, AgentError>>;

/// Another agent of the job, as somebody who has images.
#[async_trait]
pub trait ImagePeer: Send + Sync {
    /// An image from this byte on, as far as the other one has it and goes on to have it.
    async fn image_from(&self, digest: &str, from: u64) -> Result<FrameStream, AgentError>;
}

#[async_trait]
impl ImagePeer for AgentHttp {
    async fn image_from(&self, digest: &str, from: u64) -> Result<FrameStream, AgentError> {
        let reply = self.ask(Method::GET, &format!("images/{digest}?from={from}")).await?;
        let bytes = reply.bytes_stream().map_err(std::io::Error::other);
        let frames = FramedRead::with_capacity(StreamReader::new(bytes), Frames, HEAD + PORTION);
        Ok(frames.map_err(|error| AgentError::Unreachable(error.to_string())).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_as_they_were_sent_however_they_are_cut() {
        let said = vec![
            Report { member: 3, have: 7, pace: Some(0.5), from: Origin::Member(2) },
            Report { member: 2, have: 9, pace: None, from: Origin::Repository },
        ];
        let sent = [part(b"some bytes"), reports(&said), part(&vec![7; PORTION]), reports(&[])].concat();
        for step in [1, 4, 1000, sent.len()] {
            let (mut frames, mut buffer, mut come) = (Frames, BytesMut::new(), Vec::new());
            for piece in sent.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = frames.decode(&mut buffer).unwrap() {
                    come.push(frame);
                }
            }
            let expected = [
                Frame::Part(Bytes::from_static(b"some bytes")),
                Frame::Reports(said.clone()),
                Frame::Part(vec![7; PORTION].into()),
                Frame::Reports(Vec::new()),
            ];
            assert_eq!(come, expected, "{step}");
        }
    }

    #[test]
    fn d3_frames_that_are_too_long_or_unknown_are_refused_before_they_come() {
        for head in [[PART, 0, 4, 0, 1], [REPORTS, 255, 255, 255, 255], [2, 0, 0, 0, 0]] {
            assert!(Frames.decode(&mut BytesMut::from(&head[..])).is_err(), "{head:?}");
        }
        assert!(Frames.decode(&mut BytesMut::from(&frame(REPORTS, b"{")[..])).is_err());
    }
}
