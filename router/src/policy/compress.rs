//! Compresses answers on their way: which coding, for which answers, and the coding itself. What an instance has sent is
//! flushed whenever nothing more of it is at hand, so that streams and server-sent events arrive as they were sent.

use brotli::{CompressorWriter, enc::BrotliEncoderParams};
use flate2::write::GzEncoder;
use flex_model::http_policy::Coding;
use std::io::{self, Write as _};

/// Below this, the answer's head is most of what is sent.
pub(super) const WORTH: u64 = 512;
/// 256 KiB of history for zstd and brotli: most of what more would gain, in memory that many streams can have.
const WINDOW: u32 = 18;
const ZSTD_LEVEL: i32 = 3;
const BROTLI_LEVEL: i32 = 4;
const GZIP_LEVEL: u32 = 5;

/// The coding that a client likes best of those offered; of equals the first. `items`: of all `Accept-Encoding`.
pub(super) fn choose<'a>(offered: &[Coding], items: impl Iterator<Item = &'a str>) -> Option<Coding> {
    let items: Vec<(&str, u16)> = items.filter(|i| !i.is_empty()).map(weight).collect();
    let weight = |name: &str| {
        let named =
            items.iter().find(|(n, _)| n.eq_ignore_ascii_case(name) || name == "gzip" && n.eq_ignore_ascii_case("x-gzip"));
        named.or_else(|| items.iter().find(|(n, _)| *n == "*")).map_or(0, |(_, q)| *q)
    };
    let mut best: Option<(Coding, u16)> = None;
    for coding in offered {
        let q = weight(coding.name());
        if q > best.map_or(0, |(_, q)| q) {
            best = Some((*coding, q));
        }
    }
    best.map(|(coding, _)| coding)
}

/// `gzip;q=0.5` as its name and thousandths. A weight that is none counts as 0: RFC 9110 section 12.4.2 has no other reading.
fn weight(item: &str) -> (&str, u16) {
    let mut parts = item.split(';').map(str::trim);
    let name = parts.next().unwrap_or("");
    let q = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    let Some(q) = q else { return (name, 1000) };
    let (whole, part) = q.split_once('.').unwrap_or((q, ""));
    let digits = part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    let thousandths = if digits { format!("{part:0<3}").parse().unwrap_or(0) } else { 0 };
    match whole {
        "1" if part.bytes().all(|b| b == b'0') => (name, 1000),
        "0" => (name, thousandths),
        _ => (name, 0),
    }
}

/// Whether content of this type shrinks.
pub(super) fn shrinks(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    const APPLICATION: [&str; 12] = [
        "javascript",
        "json",
        "xml",
        "wasm",
        "x-javascript",
        "x-ndjson",
        "graphql",
        "manifest+json",
        "vnd.ms-fontobject",
        "rtf",
        "x-yaml",
        "yaml",
    ];
    match kind.split_once('/') {
        Some(("text", _)) => true,
        // Its messages say for themselves how they are compressed.
        Some(("application", sub)) if sub.starts_with("grpc") => false,
        Some(("application", sub)) => APPLICATION.contains(&sub) || sub.ends_with("+json") || sub.ends_with("+xml"),
        Some(("image", sub)) => matches!(sub, "svg+xml" | "bmp" | "x-icon" | "vnd.microsoft.icon"),
        Some(("font", sub)) => matches!(sub, "ttf" | "otf"),
        _ => false,
    }
}

/// One answer's compression.
pub(crate) enum Encoder {
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Br(Box<CompressorWriter<Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Zstd(_) => "zstd",
            Self::Br(_) => "br",
            Self::Gzip(_) => "gzip",
        })
    }
}

impl Encoder {
    /// None: there is no memory for it.
    pub(super) fn new(coding: Coding) -> Option<Self> {
        Some(match coding {
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).ok()?;
                encoder.window_log(WINDOW).ok()?;
                Self::Zstd(Box::new(encoder))
            }
            Coding::Br => {
                let params =
                    BrotliEncoderParams { quality: BROTLI_LEVEL, lgwin: WINDOW.cast_signed(), ..BrotliEncoderParams::default() };
                Self::Br(Box::new(CompressorWriter::with_params(Vec::new(), 4096, &params)))
            }
            Coding::Gzip => Self::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL)))),
        })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Zstd(e) => e.write_all(data),
            Self::Br(e) => e.write_all(data),
            Self::Gzip(e) => e.write_all(data),
        }
    }

    /// All that is there, so that a client can read everything that was written.
    pub(crate) fn flush(&mut self) -> io::Result<Vec<u8>> {
        Ok(match self {
            Self::Zstd(e) => {
                e.flush()?;
                std::mem::take(e.get_mut())
            }
            Self::Br(e) => {
                e.flush()?;
                std::mem::take(e.get_mut())
            }
            Self::Gzip(e) => {
                e.flush()?;
                std::mem::take(e.get_mut())
            }
        })
    }

    /// What is left, and the coding's end.
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Zstd(e) => e.finish(),
            Self::Br(e) => Ok(e.into_inner()),
            Self::Gzip(e) => e.finish(),
        }
    }
}
