//! HTTP/2 frame by frame: the cases that h2spec asks, in its order (RFC 9113 and RFC 7541 by section), each on a connection
//! of its own. What is wrong ends the connection or the stream with the code that the RFC names; what is odd but right is
//! answered as if it were not.

use crate::support::*;
use flex_model::AppState::Serving;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// END_STREAM, or ACK.
const END: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 32;
/// A request's only frame.
const WHOLE: u8 = END | END_HEADERS;

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;

#[derive(Debug, Clone)]
struct Frame {
    kind: u8,
    flags: u8,
    id: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// It ends that stream, one way or the other.
    fn is_end_of(&self, id: u32) -> bool {
        self.id == id && (self.kind == RST_STREAM || matches!(self.kind, DATA | HEADERS) && self.flags & END > 0)
    }
}

fn frame(kind: u8, flags: u8, id: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let n = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&n[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn window(id: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, id, by.to_be_bytes())
}

fn reset(id: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, code.to_be_bytes())
}

/// Fields without index or Huffman coding.
fn fields(of: &[(&str, &str)]) -> Vec<u8> {
    let n = |s: &str| u8::try_from(s.len()).unwrap();
    of.iter().flat_map(|(k, v)| [&[0, n(k)], k.as_bytes(), &[n(v)], v.as_bytes()].concat()).collect()
}

fn head_of(method: &str, path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "aa.test")];
    fields(&[&usual[..], extra].concat())
}

fn get() -> Vec<u8> {
    head_of("GET", "/", &[])
}

/// A request that is never answered, so that its stream stays half closed.
fn held() -> Vec<u8> {
    head_of("GET", "/held", &[])
}

fn post() -> Vec<u8> {
    head_of("POST", "/", &[])
}

/// One that stays open in both directions.
fn upload() -> Vec<u8> {
    head_of("POST", "/held", &[])
}

/// One client connection, after the preface and an empty SETTINGS.
struct Wire(TcpStream, Vec<u8>);

impl Wire {
    async fn new(world: &World) -> Self {
        Self::with(world, &frame(SETTINGS, 0, 0, [])).await
    }

    async fn with(world: &World, settings: &[u8]) -> Self {
        let mut wire = Self(within(TcpStream::connect(world.address)).await.unwrap(), Vec::new());
        wire.send(&[PREFACE, settings].concat()).await;
        wire
    }

    async fn send(&mut self, bytes: &[u8]) {
        // It may have been ended in the middle.
        let _ = within(self.0.write_all(bytes)).await;
    }

    /// None at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some([a, b, c, kind, flags, id @ ..]) = self.1.first_chunk::<9>() {
                let n = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                if self.1.len() >= 9 + n {
                    let (kind, flags, id) = (*kind, *flags, u32::from_be_bytes(*id));
                    let payload = self.1.drain(..9 + n).skip(9).collect();
                    return Some(Frame { kind, flags, id, payload });
                }
            }
            if within(self.0.read_buf(&mut self.1)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Result<Frame, String> {
        let mut seen = Vec::new();
        let found = async {
            while let Some(frame) = self.next().await {
                if is_it(&frame) {
                    return Some(frame);
                }
                seen.push(frame);
            }
            None
        };
        match tokio::time::timeout(DEADLINE / 2, found).await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(format!("the connection ended after {seen:?}")),
            Err(_) => Err(format!("silence after {seen:?}")),
        }
    }

    /// The connection is still good: a PING comes back.
    async fn alive(&mut self) -> Result<(), String> {
        self.send(&frame(PING, 0, 0, b"stillok?")).await;
        let same = |f: &Frame| f.kind == GOAWAY || f.kind == PING && f.flags == END && f.payload == b"stillok?";
        let last = self.until(same).await?;
        if last.kind == PING { Ok(()) } else { Err(format!("{last:?}")) }
    }

    /// The answer came, to the end of its stream.
    async fn answered(&mut self, id: u32) -> Result<(), String> {
        let last = self.until(|f| f.kind == GOAWAY && code(f) > 0 || f.is_end_of(id)).await?;
        if matches!(last.kind, DATA | HEADERS) { Ok(()) } else { Err(format!("{last:?}")) }
    }
}

fn code(frame: &Frame) -> u32 {
    let at = if frame.kind == GOAWAY { 4 } else { 0 };
    u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap())
}

async fn world() -> (World, Instance) {
    let instance = instance(|mut conn, _| async move {
        loop {
            let head = conn.head_of_request().await;
            if head.is_empty() {
                return;
            }
            if head.contains(" /held ") {
                conn.rest().await;
                return;
            }
            let answer = Answer { status: 0, head: head.clone(), body: vec![] };
            if answer.field("transfer-encoding").is_some() {
                while !conn.buf.ends_with(b"\r\n\r\n") || conn.buf.windows(3).all(|w| w != b"0\r\n") {
                    if conn.fill().await == 0 {
                        return;
                    }
                }
                conn.buf.clear();
            } else if let Some(n) = answer.field("content-length") {
                let n: usize = n.parse().unwrap();
                while conn.buf.len() < n {
                    if conn.fill().await == 0 {
                        return;
                    }
                }
                conn.buf.drain(..n);
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
            if !head.starts_with("HEAD ") {
                conn.send("hello").await;
            }
        }
    })
    .await;
    let world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    (world, instance)
}

/// What the router is to do about it.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// End the connection with one of these codes.
    Ended(&'static [u32]),
    /// End this stream with one of these codes, or the connection.
    Reset(u32, &'static [u32]),
    /// Nothing of the kind.
    Alive,
    /// Answer on this stream, and go on.
    Answered(u32),
    /// Answer on this stream, and no more.
    Last(u32),
}
use Want::{Alive, Answered, Ended, Last, Reset};

async fn outcome(world: &World, sent: &[u8], want: Want) -> Result<(), String> {
    let mut wire = Wire::new(world).await;
    wire.send(sent).await;
    let (end, codes) = match want {
        Alive => return wire.alive().await,
        Answered(id) => {
            wire.answered(id).await?;
            return wire.alive().await;
        }
        Last(id) => return wire.answered(id).await,
        Ended(codes) => {
            let end = wire.until(|f| f.kind == GOAWAY).await?;
            // And it really ends.
            while wire.next().await.is_some() {}
            (end, codes)
        }
        Reset(id, codes) => (wire.until(|f| f.kind == GOAWAY || f.is_end_of(id)).await?, codes),
    };
    // The h2 crate ends a connection with PROTOCOL_ERROR in some cases where the RFC has a code of its own.
    let right = match end.kind {
        GOAWAY => codes.contains(&code(&end)) || code(&end) == PROTOCOL,
        RST_STREAM => codes.contains(&code(&end)),
        _ => false,
    };
    if right { Ok(()) } else { Err(format!("{end:?}")) }
}

/// Tells of all cases that went wrong, not of the first alone.
async fn check(world: &World, cases: Vec<(&str, Vec<Vec<u8>>, Want)>) {
    let mut wrong = Vec::new();
    for (what, frames, want) in cases {
        if let Err(got) = outcome(world, &frames.concat(), want).await {
            wrong.push(format!("{what}: not {want:?}, but {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn frames_and_streams() {
    let (world, _instance) = world().await;
    let cases: Vec<(&str, Vec<Vec<u8>>, Want)> = vec![
        ("4.1 a frame of an unknown kind", vec![frame(0x16, 0, 0, [0; 8])], Alive),
        ("4.1 flags that nobody defined", vec![frame(PING, 0x16, 0, [0; 8])], Alive),
        ("4.1 the reserved bit", vec![frame(PING, 0, 1 << 31, [0; 8])], Alive),
        ("4.2 the largest DATA", vec![frame(HEADERS, 4, 1, post()), frame(DATA, END, 1, vec![b'x'; 1 << 14])], Answered(1)),
        (
            "4.2 too large a DATA",
            vec![frame(HEADERS, 4, 1, post()), frame(DATA, END, 1, vec![0; (1 << 14) + 1])],
            Reset(1, &[FRAME_SIZE]),
        ),
        ("4.2 too large a HEADERS", vec![frame(HEADERS, WHOLE, 1, [get(), vec![0; 1 << 14]].concat())], Ended(&[FRAME_SIZE])),
        ("4.3 a block that is none", vec![frame(HEADERS, WHOLE, 1, [0, 0, 0, 0, 0])], Reset(1, &[COMPRESSION, PROTOCOL])),
        ("4.3 PRIORITY within a block", vec![frame(HEADERS, END, 1, get()), frame(PRIORITY, 0, 1, [0; 5])], Ended(&[PROTOCOL])),
        (
            "4.3 HEADERS within another's block",
            vec![frame(HEADERS, END, 1, get()), frame(HEADERS, WHOLE, 3, get())],
            Ended(&[PROTOCOL]),
        ),
        ("5.1 idle: DATA", vec![frame(DATA, END, 1, b"x")], Ended(&[PROTOCOL])),
        ("5.1 idle: RST_STREAM", vec![reset(1, 8)], Ended(&[PROTOCOL])),
        ("5.1 idle: WINDOW_UPDATE", vec![window(1, 100)], Ended(&[PROTOCOL])),
        ("5.1 idle: CONTINUATION", vec![frame(CONTINUATION, END_HEADERS, 1, get())], Ended(&[PROTOCOL])),
        ("5.1 half closed: DATA", vec![frame(HEADERS, WHOLE, 1, held()), frame(DATA, END, 1, b"x")], Reset(1, &[CLOSED])),
        (
            "5.1 half closed: HEADERS",
            vec![frame(HEADERS, WHOLE, 1, held()), frame(HEADERS, WHOLE, 1, held())],
            Reset(1, &[CLOSED, PROTOCOL]),
        ),
        (
            "5.1 half closed: CONTINUATION",
            vec![frame(HEADERS, WHOLE, 1, held()), frame(CONTINUATION, END_HEADERS, 1, fields(&[("x", "y")]))],
            Ended(&[CLOSED, PROTOCOL]),
        ),
        ("5.1 half closed: WINDOW_UPDATE", vec![frame(HEADERS, WHOLE, 1, held()), window(1, 1)], Alive),
        ("5.1 half closed: PRIORITY", vec![frame(HEADERS, WHOLE, 1, held()), frame(PRIORITY, 0, 1, [0; 5])], Alive),
        (
            "5.1 reset: CONTINUATION",
            vec![
                frame(HEADERS, END_HEADERS, 1, upload()),
                reset(1, 8),
                frame(CONTINUATION, END_HEADERS, 1, fields(&[("x", "y")])),
            ],
            Ended(&[CLOSED, PROTOCOL]),
        ),
        (
            "5.1 reset: PRIORITY",
            vec![frame(HEADERS, END_HEADERS, 1, upload()), reset(1, 8), frame(PRIORITY, 0, 1, [0; 5])],
            Alive,
        ),
        ("5.1.1 an even number", vec![frame(HEADERS, WHOLE, 2, get())], Ended(&[PROTOCOL])),
        (
            "5.1.1 a smaller number",
            vec![frame(HEADERS, WHOLE, 5, get()), frame(HEADERS, WHOLE, 3, get())],
            Ended(&[PROTOCOL, CLOSED]),
        ),
        (
            "5.3.1 a stream that depends on itself",
            vec![frame(HEADERS, WHOLE | WITH_PRIORITY, 1, [&[0, 0, 0, 1, 9][..], &get()].concat())],
            Reset(1, &[PROTOCOL]),
        ),
        (
            "5.3.1 PRIORITY on itself",
            vec![frame(HEADERS, WHOLE, 1, held()), frame(PRIORITY, 0, 1, [0, 0, 0, 1, 9])],
            Reset(1, &[PROTOCOL]),
        ),
        (
            "5.3 PRIORITY of an idle stream",
            vec![frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9]), frame(HEADERS, WHOLE, 1, get())],
            Answered(1),
        ),
        (
            "5.5 an unknown frame within a block",
            vec![frame(HEADERS, END, 1, get()), frame(0x16, 0, 1, [0; 8])],
            Ended(&[PROTOCOL]),
        ),
    ];
    check(&world, cases).await;
    world.stop().await;
}

#[tokio::test]
async fn kinds_of_frames() {
    let (world, _instance) = world().await;
    let cases: Vec<(&str, Vec<Vec<u8>>, Want)> = vec![
        ("6.1 DATA of no stream", vec![frame(HEADERS, 4, 1, post()), frame(DATA, END, 0, b"x")], Ended(&[PROTOCOL])),
        (
            "6.1 more padding than frame",
            vec![frame(HEADERS, 4, 1, post()), frame(DATA, END | PADDED, 1, [6, 1, 2, 3, 4])],
            Ended(&[PROTOCOL]),
        ),
        ("6.1 padding", vec![frame(HEADERS, 4, 1, post()), frame(DATA, END | PADDED, 1, [2, b'x', 0, 0])], Answered(1)),
        ("6.2 HEADERS of no stream", vec![frame(HEADERS, WHOLE, 0, get())], Ended(&[PROTOCOL])),
        (
            "6.2 more padding than frame",
            vec![frame(HEADERS, WHOLE | PADDED, 1, [&[200][..], &get()].concat())],
            Ended(&[PROTOCOL]),
        ),
        ("6.2 padding", vec![frame(HEADERS, WHOLE | PADDED, 1, [&[2][..], &get(), &[0, 0]].concat())], Answered(1)),
        (
            "6.2 a priority",
            vec![frame(HEADERS, WHOLE | WITH_PRIORITY, 1, [&[0, 0, 0, 0, 255][..], &get()].concat())],
            Answered(1),
        ),
        ("6.3 PRIORITY of no stream", vec![frame(PRIORITY, 0, 0, [0; 5])], Ended(&[PROTOCOL])),
        ("6.3 a short PRIORITY", vec![frame(HEADERS, WHOLE, 1, held()), frame(PRIORITY, 0, 1, [0; 4])], Reset(1, &[FRAME_SIZE])),
        ("6.4 RST_STREAM of no stream", vec![reset(0, 8)], Ended(&[PROTOCOL])),
        ("6.4 a short RST_STREAM", vec![frame(HEADERS, 4, 1, upload()), frame(RST_STREAM, 0, 1, [0; 3])], Ended(&[FRAME_SIZE])),
        ("6.8 GOAWAY of a stream", vec![frame(GOAWAY, 0, 1, [0; 8])], Ended(&[PROTOCOL])),
        (
            "7 GOAWAY for a reason unheard of",
            vec![frame(HEADERS, WHOLE, 1, get()), frame(GOAWAY, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0xff])],
            Last(1),
        ),
        ("7 RST_STREAM for a reason unheard of", vec![frame(HEADERS, 4, 1, upload()), reset(1, 0xff)], Alive),
        (
            "8.2 PUSH_PROMISE of a client",
            vec![frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &get()].concat())],
            Ended(&[PROTOCOL]),
        ),
        (
            "6.10 a block in many frames",
            vec![
                frame(HEADERS, END, 1, &get()[..9]),
                frame(CONTINUATION, 0, 1, &get()[9..20]),
                frame(CONTINUATION, END_HEADERS, 1, &get()[20..]),
            ],
            Answered(1),
        ),
        (
            "6.10 CONTINUATION of no stream",
            vec![frame(HEADERS, END, 1, get()), frame(CONTINUATION, END_HEADERS, 0, [])],
            Ended(&[PROTOCOL]),
        ),
        (
            "6.10 CONTINUATION, then something else",
            vec![frame(HEADERS, END, 1, get()), frame(CONTINUATION, 0, 1, fields(&[("x", "y")])), frame(DATA, END, 1, b"x")],
            Ended(&[PROTOCOL]),
        ),
        (
            "6.10 CONTINUATION after the block's end",
            vec![frame(HEADERS, 4, 1, upload()), frame(CONTINUATION, END_HEADERS, 1, fields(&[("x", "y")]))],
            Ended(&[PROTOCOL]),
        ),
        (
            "6.10 CONTINUATION after DATA",
            vec![
                frame(HEADERS, 4, 1, upload()),
                frame(DATA, 0, 1, b"x"),
                frame(CONTINUATION, END_HEADERS, 1, fields(&[("x", "y")])),
            ],
            Ended(&[PROTOCOL]),
        ),
    ];
    check(&world, cases).await;
    world.stop().await;
}

#[tokio::test]
async fn settings_and_pings() {
    let (world, _instance) = world().await;
    let cases: Vec<(&str, Vec<Vec<u8>>, Want)> = vec![
        ("6.5 an acknowledgement with content", vec![frame(SETTINGS, END, 0, [0])], Ended(&[FRAME_SIZE])),
        ("6.5 SETTINGS of a stream", vec![frame(SETTINGS, 0, 1, setting(3, 100))], Ended(&[PROTOCOL])),
        ("6.5 half a setting", vec![frame(SETTINGS, 0, 0, [0, 3, 0])], Ended(&[FRAME_SIZE])),
        ("6.5.2 ENABLE_PUSH of 2", vec![frame(SETTINGS, 0, 0, setting(2, 2))], Ended(&[PROTOCOL])),
        ("6.5.2 too large a window", vec![frame(SETTINGS, 0, 0, setting(4, 1 << 31))], Ended(&[FLOW_CONTROL])),
        ("6.5.2 too small a frame", vec![frame(SETTINGS, 0, 0, setting(5, (1 << 14) - 1))], Ended(&[PROTOCOL])),
        ("6.5.2 too large a frame", vec![frame(SETTINGS, 0, 0, setting(5, 1 << 24))], Ended(&[PROTOCOL])),
        ("6.5.2 a setting unheard of", vec![frame(SETTINGS, 0, 0, setting(0xff, 1))], Alive),
        (
            "6.5.2 a setting said twice",
            vec![frame(SETTINGS, 0, 0, [setting(4, 0), setting(4, 100)].concat()), frame(HEADERS, WHOLE, 1, get())],
            Answered(1),
        ),
        ("6.7 PING of a stream", vec![frame(PING, 0, 1, [0; 8])], Ended(&[PROTOCOL])),
        ("6.7 a short PING", vec![frame(PING, 0, 0, [0; 6])], Ended(&[FRAME_SIZE])),
        ("6.7 an acknowledgement of no PING", vec![frame(PING, END, 0, [7; 8])], Alive),
        ("6.9 WINDOW_UPDATE of 0", vec![window(0, 0)], Ended(&[PROTOCOL])),
        ("6.9 WINDOW_UPDATE of 0 of a stream", vec![frame(HEADERS, 4, 1, upload()), window(1, 0)], Reset(1, &[PROTOCOL])),
        ("6.9 a short WINDOW_UPDATE", vec![frame(WINDOW_UPDATE, 0, 0, [0; 3])], Ended(&[FRAME_SIZE])),
        (
            "6.9.1 the connection's window overflows",
            vec![window(0, i32::MAX as u32), window(0, i32::MAX as u32)],
            Ended(&[FLOW_CONTROL]),
        ),
        (
            "6.9.1 a stream's window overflows",
            vec![frame(HEADERS, WHOLE, 1, held()), window(1, i32::MAX as u32), window(1, i32::MAX as u32)],
            Reset(1, &[FLOW_CONTROL]),
        ),
    ];
    check(&world, cases).await;
    // 3.5: what is no preface ends the connection.
    let mut wire = Wire(within(TcpStream::connect(world.address)).await.unwrap(), Vec::new());
    wire.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    while wire.next().await.is_some() {}
    // 3.4, 6.5.3: the router's settings come first, and the client's are acknowledged once each.
    let mut wire = Wire::new(&world).await;
    let first = wire.next().await.unwrap();
    assert_eq!((first.kind, first.flags), (SETTINGS, 0));
    wire.send(&frame(SETTINGS, 0, 0, setting(1, 100))).await;
    wire.send(&frame(PING, END, 0, b"nobodyis")).await;
    wire.send(&frame(PING, 0, 0, b"the last")).await;
    let mut acknowledged = 0;
    loop {
        let frame = wire.next().await.unwrap();
        match (frame.kind, frame.flags) {
            (SETTINGS, END) => acknowledged += 1,
            (PING, END) if frame.payload == b"the last" => break,
            (PING, _) => panic!("{frame:?}"),
            _ => {}
        }
    }
    assert_eq!(acknowledged, 2);
    // 5.1.2: as many streams as were allowed, and then one more.
    let most =
        (first.payload.chunks(6)).find(|s| s[..2] == [0, 3]).map(|s| u32::from_be_bytes(s[2..].try_into().unwrap())).unwrap();
    let mut wire = Wire::new(&world).await;
    for n in 0..=most {
        wire.send(&frame(HEADERS, WHOLE, 2 * n + 1, held())).await;
    }
    let end = wire.until(|f| f.kind == GOAWAY || f.kind == RST_STREAM).await.expect("5.1.2");
    assert!([PROTOCOL, REFUSED].contains(&code(&end)) && (end.kind == GOAWAY || end.id == 2 * most + 1), "{end:?}");
    drop(wire);
    world.stop_now().await;
}

/// 6.9.1 and 6.9.2: no byte more than the client has room for, and room that becomes negative is waited out.
#[tokio::test]
async fn windows_are_kept_to() {
    let (world, _instance) = world().await;
    let data = |f: &Frame| f.kind == DATA;
    let mut wire = Wire::with(&world, &frame(SETTINGS, 0, 0, setting(4, 1))).await;
    wire.send(&frame(HEADERS, WHOLE, 1, get())).await;
    assert_eq!(wire.until(data).await.expect("one byte").payload, b"h");
    wire.alive().await.expect("nothing more");
    wire.send(&window(1, 2)).await;
    assert_eq!(wire.until(data).await.expect("two more").payload, b"el");
    // Three bytes were sent: room for two is one too few, room for four is one more.
    wire.send(&frame(SETTINGS, 0, 0, setting(4, 0))).await;
    wire.alive().await.expect("nothing by less room");
    wire.send(&window(1, 1)).await;
    wire.alive().await.expect("nothing while the room is not above zero");
    wire.send(&frame(SETTINGS, 0, 0, setting(4, 1))).await;
    assert_eq!(wire.until(data).await.expect("the next").payload, b"l");
    wire.send(&frame(SETTINGS, 0, 0, setting(4, 100))).await;
    let last = wire.until(data).await.expect("the last");
    assert_eq!(last.payload, b"o");
    if last.flags & END == 0 {
        wire.answered(1).await.expect("the end");
    }
    // And what the client sends beyond the router's window ends the stream or the connection.
    let mut wire = Wire::new(&world).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, upload())).await;
    let piece = frame(DATA, 0, 1, vec![b'x'; 1 << 14]);
    for _ in 0..200 {
        wire.send(&piece).await;
    }
    let end = wire.until(|f| f.kind == GOAWAY || f.kind == RST_STREAM).await.expect("beyond the window");
    assert_eq!(code(&end), FLOW_CONTROL, "{end:?}");
    drop(wire);
    world.stop_now().await;
}

#[tokio::test]
async fn messages() {
    let (world, _instance) = world().await;
    let block = |block: Vec<u8>| vec![frame(HEADERS, WHOLE, 1, block)];
    let with = |extra: &[(&str, &str)]| block(head_of("GET", "/", extra));
    let of = |list: &[(&str, &str)]| block(fields(list));
    let (m, s, p, a) = ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "aa.test"));
    let said = |n: &str, data: &[&[u8]]| {
        let mut frames = vec![frame(HEADERS, END_HEADERS, 1, head_of("POST", "/", &[("content-length", n)]))];
        for (i, piece) in data.iter().enumerate() {
            frames.push(frame(DATA, u8::from(i + 1 == data.len()), 1, piece));
        }
        frames
    };
    let trailers = |flags: u8, of: &[(&str, &str)]| {
        vec![frame(HEADERS, END_HEADERS, 1, post()), frame(DATA, 0, 1, b"x"), frame(HEADERS, flags, 1, fields(of))]
    };
    let malformed = Reset(1, &[PROTOCOL]);
    let cases: Vec<(&str, Vec<Vec<u8>>, Want)> = vec![
        (
            "8.1 GET, HEAD and POST",
            [
                block(get()),
                vec![
                    frame(HEADERS, WHOLE, 3, head_of("HEAD", "/", &[])),
                    frame(HEADERS, END_HEADERS, 5, post()),
                    frame(DATA, END, 5, b"x"),
                ],
            ]
            .concat(),
            Answered(5),
        ),
        ("8.1 trailers", trailers(WHOLE, &[("x-sum", "1")]), Answered(1)),
        ("8.1 HEADERS again that do not end the stream", trailers(END_HEADERS, &[("x-sum", "1")]), malformed),
        ("8.1.2 an upper-case name", with(&[("X-Test", "ok")]), malformed),
        ("8.1.2.1 a pseudo field unheard of", with(&[(":test", "ok")]), malformed),
        ("8.1.2.1 a pseudo field of answers", with(&[(":status", "200")]), malformed),
        // The h2 crate drops it, so that no instance sees it.
        ("8.1.2.1 a pseudo field in trailers", trailers(WHOLE, &[(":method", "GET")]), Answered(1)),
        ("8.1.2.1 a pseudo field after others", of(&[m, s, ("x", "y"), p, a]), malformed),
        ("8.1.2.2 Connection", with(&[("connection", "keep-alive")]), malformed),
        ("8.1.2.2 TE that is not trailers", with(&[("te", "trailers, deflate")]), malformed),
        ("8.1.2.2 TE: trailers", with(&[("te", "trailers")]), Answered(1)),
        ("8.1.2.3 an empty :path", of(&[m, s, (":path", ""), a]), malformed),
        ("8.1.2.3 no :method", of(&[s, p, a]), malformed),
        ("8.1.2.3 no :scheme", of(&[m, p, a]), malformed),
        ("8.1.2.3 no :path", of(&[m, s, a]), malformed),
        ("8.1.2.3 two :method", of(&[m, m, s, p, a]), malformed),
        ("8.1.2.3 two :scheme", of(&[m, s, s, p, a]), malformed),
        ("8.1.2.3 two :path", of(&[m, s, p, p, a]), malformed),
        ("8.1.2.5 a cookie in pieces", with(&[("cookie", "a=b"), ("cookie", "c=d")]), Answered(1)),
        ("8.1.2.6 less content than said", said("2", &[b"x"]), malformed),
        ("8.1.2.6 more content than said", said("1", &[b"xy"]), malformed),
        ("8.1.2.6 less content than said, in pieces", said("3", &[b"x", b"y"]), malformed),
        ("8.1.2.6 content as said", said("2", &[b"x", b"y"]), Answered(1)),
    ];
    check(&world, cases).await;
    world.stop().await;
}

/// RFC 7541: every representation is read, and a block that no encoder makes ends the connection, because the two sides'
/// tables would differ from then on.
#[tokio::test]
async fn compressed_heads() {
    let (world, _instance) = world().await;
    let whole = |block: &[&[u8]]| vec![frame(HEADERS, WHOLE, 1, block.concat())];
    let authority = fields(&[(":authority", "aa.test")]);
    // By index: :method GET, :scheme http, :path /.
    let indexed: &[u8] = &[0x82, 0x86, 0x84];
    let after = |bytes: &[u8]| whole(&[indexed, &authority, bytes]);
    let broken = Ended(&[COMPRESSION]);
    let cases: Vec<(&str, Vec<Vec<u8>>, Want)> = vec![
        ("6.1 by index", whole(&[indexed, &authority]), Answered(1)),
        ("6.2.1 added to the table, name by index", after(b"\x50\x03a/b"), Answered(1)),
        ("6.2.1 added to the table and named by it", after(b"\x40\x01x\x01y\xbe"), Answered(1)),
        ("6.2.2 not added, name by index", after(b"\x0f\x04\x02hi"), Answered(1)),
        ("6.2.3 never to be added", after(b"\x10\x06secret\x01y"), Answered(1)),
        ("5.2 by Huffman", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x9f"), Answered(1)),
        ("6.3 a smaller table", whole(&[&[0x20], indexed, &authority]), Answered(1)),
        ("2.3.3 an index beyond the table", after(&[0xff, 0x50]), broken),
        ("6.1 the index 0", after(&[0x80]), broken),
        ("4.2 a new size at the end", after(&[0x20]), broken),
        ("6.3 a larger table than was allowed", whole(&[&[0x3f, 0xe2, 0x1f], indexed, &authority]), broken),
        ("5.2 padding of more than seven bits", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"), broken),
        ("5.2 padding of zeros", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"), broken),
        ("5.2 the end of strings within one", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"), broken),
        ("5.1 a number without an end", after(&[0xff; 20]), broken),
    ];
    check(&world, cases).await;
    world.stop().await;
}
