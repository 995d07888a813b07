//! What a file is compressed with, told by its first bytes: names and descriptions are not believed.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
};

/// Most memory that the decoder of xz may take.
const XZ_MEMORY: u64 = 128 << 20;
/// Largest window of zstd, as a power of two: what `zstd -19 --long` makes.
const ZSTD_WINDOW: u32 = 27;
/// Largest block of the old LZ4 format.
const LZ4_BLOCK: usize = 8 << 20;
const BUFFER: usize = 1 << 18;

/// A way to compress a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    /// The format of `lz4 -l`, which kernels take for initial ram disks.
    Lz4Legacy,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
        })
    }
}

impl Compression {
    /// Tells it from the first bytes.
    pub(super) fn of(head: &[u8]) -> Self {
        let magics: [(&[u8], Self); 5] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"BZh", Self::Bzip2),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"\x02\x21\x4c\x18", Self::Lz4Legacy),
        ];
        magics.into_iter().find(|(magic, _)| head.starts_with(magic)).map_or(Self::None, |(_, found)| found)
    }
}

/// Opens a stream by its first bytes.
pub(super) fn open(from: impl Read + 'static) -> io::Result<(Compression, Box<dyn BufRead>)> {
    let mut from = BufReader::with_capacity(BUFFER, from);
    let found = Compression::of(from.fill_buf()?);
    let opened: Box<dyn Read> = match found {
        Compression::None => return Ok((found, Box::new(from))),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED);
            Box::new(liblzma::bufread::XzDecoder::new_stream(from, stream.map_err(io::Error::other)?))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Compression::Lz4Legacy => Box::new(Lz4Legacy { from, block: Vec::new(), at: 0 }),
    };
    Ok((found, Box::new(BufReader::with_capacity(BUFFER, opened))))
}

/// Blocks of LZ4, each behind its length; a magic number in place of a length begins another stream.
struct Lz4Legacy<R> {
    from: R,
    block: Vec<u8>,
    at: usize,
}

const LZ4_MAGIC: u32 = 0x184c_2102;

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if self.from.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let mut word = [0; 4];
            self.from.read_exact(&mut word)?;
            match u32::from_le_bytes(word) {
                LZ4_MAGIC => {}
                // padding behind the end
                0 => return Ok(0),
                length if length as usize > LZ4_BLOCK + LZ4_BLOCK / 128 => {
                    return Err(io::Error::other("a block of lz4 is too long"));
                }
                length => {
                    let mut packed = vec![0; length as usize];
                    self.from.read_exact(&mut packed)?;
                    self.block.resize(LZ4_BLOCK, 0);
                    let n = lz4_flex::block::decompress_into(&packed, &mut self.block).map_err(io::Error::other)?;
                    self.block.truncate(n);
                    self.at = 0;
                }
            }
        }
        let n = to.len().min(self.block.len() - self.at);
        to[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use rstest::rstest;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        to.write_all(data).unwrap();
        to.finish().unwrap()
    }

    fn bzip2(data: &[u8]) -> Vec<u8> {
        let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        to.write_all(data).unwrap();
        to.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
        to.write_all(data).unwrap();
        to.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut all = LZ4_MAGIC.to_le_bytes().to_vec();
        for block in data.chunks(LZ4_BLOCK) {
            let packed = lz4_flex::block::compress(block);
            all.extend((packed.len() as u32).to_le_bytes());
            all.extend(packed);
        }
        all
    }

    #[rstest]
    #[case::none(|data: &[u8]| data.to_vec(), Compression::None)]
    #[case::gzip(gzip, Compression::Gzip)]
    #[case::bzip2(bzip2, Compression::Bzip2)]
    #[case::xz(xz, Compression::Xz)]
    #[case::zstd(zstd, Compression::Zstd)]
    #[case::lz4(lz4, Compression::Lz4Legacy)]
    fn every_compression_is_told_and_read(#[case] pack: fn(&[u8]) -> Vec<u8>, #[case] wanted: Compression) {
        let data: Vec<u8> = (0..LZ4_BLOCK + 70_000).map(|n| (n / 1000) as u8).collect();
        let packed = pack(&data);
        let (found, mut from) = open(Cursor::new(packed.clone())).unwrap();
        let mut read = Vec::new();
        from.read_to_end(&mut read).unwrap();
        assert!(found == wanted && read == data, "{found}");
        if wanted != Compression::None {
            let (_, mut from) = open(Cursor::new(packed[..packed.len() / 2].to_vec())).unwrap();
            assert!(from.read_to_end(&mut Vec::new()).is_err(), "half of it is not all of it");
        }
    }
}
