//! The router among programs that others wrote: haproxy and nginx in front and behind, with the PROXY protocol; gRPC clients
//! and servers; WebSockets of Python and npm; HTTP/3 of aioquic; openssl. `scripts/test` installs them; `FLEX_TEST_PYTHON` names a Python that has
//! `grpcio`, `websockets` and `aioquic`, `FLEX_TEST_NODE` a Node.js, `NODE_PATH` where npm's `ws` is.

mod support;
use flex_model::{AppRoute, AppState::Serving, InstanceProtocol, Match, Policy, ProxyVersion};
use flex_router::RouterSettings;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Program {
    let what = format!("{command:?}");
    Program(command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{what}: {e}; scripts/test installs it")))
}

fn haproxy(dir: &Path, sections: &str) -> Program {
    let file = dir.join("haproxy.cfg");
    let timeouts = "timeout connect 5s\n timeout client 20s\n timeout server 20s";
    std::fs::write(&file, format!("global\n maxconn 100\ndefaults\n {timeouts}\n{sections}\n")).unwrap();
    start(Command::new("haproxy").args(["-db", "-q", "-f"]).arg(file))
}

fn nginx(dir: &Path, sections: &str) -> Program {
    let file = dir.join("nginx.conf");
    let modules = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\nevents {}\n";
    let (log, pid) = (dir.join("error.log"), dir.join("nginx.pid"));
    std::fs::write(&file, format!("{modules}pid {};\nerror_log {};\n{sections}\n", pid.display(), log.display())).unwrap();
    start(Command::new("nginx").arg("-e").arg(log).arg("-p").arg(dir).arg("-c").arg(file))
}

/// The program with `grpcio`, `websockets` and `aioquic`.
fn python(script: &str, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("FLEX_TEST_PYTHON").unwrap_or_else(|_| "python3".into()));
    command.arg("-c").arg(script).args(args);
    command
}

async fn listening(port: u16) {
    eventually(async || tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()).await;
}

/// A balancer's address that is not the clients': so that what it says can be told from what it is.
const BALANCER: &str = "127.0.0.2";

fn trusting(settings: &mut RouterSettings) {
    settings.proxy_protocol_http = vec![BALANCER.parse().unwrap()];
    settings.proxy_protocol_tcp = vec![BALANCER.parse().unwrap()];
}

fn with(app: AppRoute, routes: Vec<flex_model::Route>) -> AppRoute {
    AppRoute { routes, ..app }
}

async fn ask(port: u16, request: &str) -> Answer {
    let mut client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
    client.send(request).await;
    client.answer().await
}

#[tokio::test]
async fn haproxy_and_nginx_in_front_tell_who_the_client_is() {
    let dir = tempfile::tempdir().unwrap();
    let instance = echo().await;
    // Repeats the PROXY header of the router to the client.
    let told = support::instance(|mut conn, _| async move {
        let head = conn.exact(16).await;
        let rest = conn.exact(usize::from(u16::from_be_bytes([head[14], head[15]]))).await;
        conn.send_bytes(&rest).await;
    })
    .await;
    let pair = Pair::new("one", &["aa.test"]);
    let tcp = free_port().await;
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), tune: trusting, ..Setup::default() };
    let mut world = setup.start(table(1, vec![])).await;
    let matches = Match::Tcp { port: tcp.try_into().unwrap(), tls: false };
    let policy = Policy { proxy_protocol: Some(ProxyVersion::V2), ..Policy::default() };
    let db = with(app("db", Serving, vec![backend(2, told.address)]), vec![route(1, matches, policy)]);
    world.set(2, vec![app("aa", Serving, vec![backend(1, instance.address)]), db]).await;
    let (http, https) = (world.address.port(), world.https.unwrap().port());
    let mut ports = Vec::new();
    for _ in 0..6 {
        ports.push(free_port().await);
    }
    let [one, two, checked, secure, raw, stream] = ports[..] else { panic!() };
    let proxy = |port: u16, to: u16, how: &str| {
        format!(
            "listen l{port}\n bind 127.0.0.1:{port}\n mode tcp\n unique-id-format lb-%ci-%cp\n server s 127.0.0.1:{to} source {BALANCER} {how}"
        )
    };
    // `check`: haproxy's own checks come with LOCAL.
    let _haproxy = haproxy(
        dir.path(),
        &[
            proxy(one, http, "send-proxy"),
            proxy(two, http, "send-proxy-v2"),
            proxy(checked, http, "send-proxy-v2 check inter 100ms fall 1 rise 1"),
            proxy(secure, https, "send-proxy-v2"),
            proxy(raw, tcp, "send-proxy-v2 proxy-v2-options unique-id,crc32c"),
        ]
        .join("\n"),
    );
    let _nginx = nginx(
        dir.path(),
        &format!(
            "stream {{ server {{ listen 127.0.0.1:{stream}; proxy_bind {BALANCER}; proxy_protocol on; proxy_pass 127.0.0.1:{http}; }} }}"
        ),
    );
    for port in [one, two, checked, secure, raw, stream] {
        listening(port).await;
    }
    for port in [one, two, checked, stream] {
        let answer = ask(port, "GET / HTTP/1.1\r\nHost: aa.test\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await.text();
        assert!(answer.contains("X-Forwarded-For: 127.0.0.1\r\n"), "{answer}");
        assert!(answer.contains(&format!("X-Forwarded-Port: {port}\r\n")), "{answer}");
        assert!(answer.contains("Forwarded: for=127.0.0.1;host=\"aa.test\";proto=http\r\n"), "{answer}");
    }
    // HTTPS behind a balancer that leaves TLS alone, by another TLS stack.
    let cert = dir.path().join("ca.pem");
    std::fs::write(&cert, &pair.certificate.chain).unwrap();
    let answer = openssl(secure, &cert, "aa.test", "GET / HTTP/1.1\r\nHost: aa.test\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("X-Forwarded-Proto: https\r\n") && answer.contains("X-Forwarded-For: 127.0.0.1\r\n"), "{answer}");
    // What the balancer told is told on: addresses and its own id for the connection.
    let mut client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, raw))).await;
    let seen = client.rest().await;
    assert_eq!(seen[..8], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(u16::from_be_bytes([seen[10], seen[11]]), raw);
    assert!(String::from_utf8_lossy(&seen).contains("lb-127.0.0.1-"), "{seen:?}");
    // Who comes without the balancer is refused.
    let refused = world.metrics.snapshot().proxy_refused;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(client.rest().await, b"");
    assert_eq!(world.metrics.snapshot().proxy_refused, refused + 1);
    world.stop_now().await;
}

/// What `openssl s_client` gets for a request, having verified the certificate.
async fn openssl(port: u16, ca: &Path, name: &str, request: &str) -> String {
    let to = format!("127.0.0.1:{port}");
    let mut command = tokio::process::Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-connect", &to, "-servername", name, "-verify_hostname", name]);
    command.arg("-CAfile").arg(ca).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    within(child.stdout.take().unwrap().read_to_string(&mut all)).await.unwrap();
    all
}

#[tokio::test]
async fn haproxy_and_nginx_behind_learn_who_the_client_is() {
    let dir = tempfile::tempdir().unwrap();
    let (h, n, tcp) = (free_port().await, free_port().await, free_port().await);
    // Both answer with what the PROXY header told them.
    let answer =
        "http-request return status 200 content-type text/plain lf-string \"%[src] %[fc_pp_authority] %[fc_pp_unique_id]\"";
    let _haproxy = haproxy(dir.path(), &format!("frontend f\n bind 127.0.0.1:{h} accept-proxy\n mode http\n {answer}"));
    let server = format!("listen 127.0.0.1:{n} proxy_protocol; return 200 \"$proxy_protocol_addr $proxy_protocol_port\";");
    let stream = format!("listen 127.0.0.1:{tcp} proxy_protocol; return \"$proxy_protocol_addr $proxy_protocol_port\";");
    let logs = dir.path().join("access.log");
    let http = format!("http {{ access_log {}; server {{ {server} }} }}", logs.display());
    let _nginx = nginx(dir.path(), &format!("{http}\nstream {{ server {{ {stream} }} }}"));
    for port in [h, n, tcp] {
        listening(port).await;
    }
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let speaks = |name, to, version| {
        let mut app = app(name, Serving, vec![backend(u128::from(at(to).port()), at(to))]);
        app.policy = Some(Arc::new(Policy { proxy_protocol: Some(version), ..Policy::default() }));
        app
    };
    let out = free_port().await;
    let matches = Match::Tcp { port: out.try_into().unwrap(), tls: false };
    let policy = Policy { proxy_protocol: Some(ProxyVersion::V1), ..Policy::default() };
    let pair = Pair::new("one", &["ha.test"]);
    let mut world = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() }.start(table(1, vec![])).await;
    let db = with(app("db", Serving, vec![backend(9, at(tcp))]), vec![route(1, matches, policy)]);
    let (ha, ng) = (speaks("ha", h, ProxyVersion::V2), speaks("ng", n, ProxyVersion::V1));
    world.set(2, vec![ha, ng, speaks("nh", n, ProxyVersion::V2), db]).await;
    let mut client = world.client().await;
    let from = client.stream.local_addr().unwrap();
    for host in ["ng.test", "nh.test"] {
        client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(client.answer().await.text(), format!("127.0.0.1 {}", from.port()), "{host}");
    }
    let cert = dir.path().join("ca.pem");
    std::fs::write(&cert, &pair.certificate.chain).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: ha.test\r\nConnection: close\r\n\r\n";
    let answer = openssl(world.https.unwrap().port(), &cert, "ha.test", request).await;
    let last = answer.lines().last().unwrap_or_default();
    let id = answer.lines().find_map(|l| l.strip_prefix("X-Request-ID: ")).unwrap_or_default();
    assert!(last.starts_with("127.0.0.1 ha.test ") && last.len() > "127.0.0.1 ha.test ".len() + 8, "{id} {answer}");
    listening(out).await;
    let mut client = Client::new(at(out)).await;
    let from = client.stream.local_addr().unwrap();
    assert_eq!(String::from_utf8(client.rest().await).unwrap(), format!("127.0.0.1 {}", from.port()));
    world.stop_now().await;
}

/// A server of four kinds of calls without message definitions: bytes are messages too.
const GRPC_SERVER: &str = r#"
import grpc, sys
from concurrent import futures

def one(request, context):
    if request == b"fail":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    context.set_trailing_metadata((("seen", str(len(request))),))
    return request

def many(request, context):
    for n in range(50):
        yield request + str(n).encode()

def sum_up(requests, context):
    return str(sum(len(r) for r in requests)).encode()

def talk(requests, context):
    for r in requests:
        yield b"re: " + r

handlers = grpc.method_handlers_generic_handler("t.T", {
    "One": grpc.unary_unary_rpc_method_handler(one),
    "Many": grpc.unary_stream_rpc_method_handler(many),
    "SumUp": grpc.stream_unary_rpc_method_handler(sum_up),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
})
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((handlers,))
assert server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
"#;

const GRPC_CLIENT: &str = r#"
import grpc, queue, sys
to, ca = sys.argv[1], sys.argv[2:]
options = [("grpc.default_authority", "aa.test"), ("grpc.ssl_target_name_override", "aa.test")]
if ca:
    channel = grpc.secure_channel(to, grpc.ssl_channel_credentials(open(ca[0], "rb").read()), options)
else:
    channel = grpc.insecure_channel(to, options)
T = 15
one = channel.unary_unary("/t.T/One")
answer, call = one.with_call(b"x" * 1000000, timeout=T)
assert answer == b"x" * 1000000
assert dict(call.trailing_metadata())["seen"] == "1000000", call.trailing_metadata()
try:
    one(b"fail", timeout=T)
    raise SystemExit("no error")
except grpc.RpcError as e:
    assert e.code() == grpc.StatusCode.NOT_FOUND and e.details() == "no such thing", e
try:
    channel.unary_unary("/t.T/None")(b"", timeout=T)
    raise SystemExit("no error")
except grpc.RpcError as e:
    assert e.code() == grpc.StatusCode.UNIMPLEMENTED, e
assert list(channel.unary_stream("/t.T/Many")(b"n", timeout=T)) == [b"n%d" % n for n in range(50)]
assert channel.stream_unary("/t.T/SumUp")(iter([b"ab"] * 100), timeout=T) == b"200"
# Both sides in turns: each word waits for the answer to the one before.
words = queue.Queue()
answers = channel.stream_stream("/t.T/Talk")(iter(words.get, None), timeout=T)
for n in range(20):
    words.put(b"%d" % n)
    assert next(answers) == b"re: %d" % n
words.put(None)
assert list(answers) == []
calls = [one.future(b"%d" % n, timeout=T) for n in range(200)]
assert [c.result() for c in calls] == [b"%d" % n for n in range(200)]
print("all well")
"#;

#[tokio::test]
async fn grpc_works_from_end_to_end_in_the_clear_and_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let _server = start(&mut python(GRPC_SERVER, &[&port.to_string()]));
    listening(port).await;
    let pair = Pair::new("one", &["aa.test"]);
    let mut aa = app("aa", Serving, vec![backend(1, ([127, 0, 0, 1], port).into())]);
    aa.policy = Some(Arc::new(Policy { protocol: InstanceProtocol::H2c, ..Policy::default() }));
    let world = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() }.start(table(1, vec![aa])).await;
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &pair.certificate.chain).unwrap();
    let (plain, secure) = (world.address.to_string(), world.https.unwrap().to_string());
    for args in [vec![plain.as_str()], vec![secure.as_str(), ca.to_str().unwrap()]] {
        let mut command = tokio::process::Command::from(python(GRPC_CLIENT, &args));
        let ended = tokio::time::timeout(Duration::from_secs(50), command.kill_on_drop(true).output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success() && ended.stdout == b"all well\n", "{args:?}: {said}");
    }
    world.stop_now().await;
}

const WS_SERVER: &str = r#"
import asyncio, sys, websockets
async def echo(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1])):
        await asyncio.Future()
asyncio.run(main())
"#;

const WS_CLIENT: &str = r#"
import asyncio, sys, websockets
async def main():
    async with websockets.connect("ws://aa.test/", host="127.0.0.1", port=int(sys.argv[1])) as ws:
        for message in ["hello", "x" * 500000, b"\x00\xff" * 1000]:
            await ws.send(message)
            assert await ws.recv() == message
        await asyncio.wait_for(await ws.ping(), 10)
asyncio.run(main())
print("all well")
"#;

#[tokio::test]
async fn websockets_of_others_work_from_end_to_end() {
    let port = free_port().await;
    let _server = start(&mut python(WS_SERVER, &[&port.to_string()]));
    listening(port).await;
    let world = World::new(vec![app("aa", Serving, vec![backend(1, ([127, 0, 0, 1], port).into())])]).await;
    let mut command = tokio::process::Command::from(python(WS_CLIENT, &[&world.address.port().to_string()]));
    let ended = tokio::time::timeout(Duration::from_secs(50), command.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(ended.status.success() && ended.stdout == b"all well\n", "{}", String::from_utf8_lossy(&ended.stderr));
    world.stop_now().await;
}

const NPM_SERVER: &str = r#"
const { WebSocketServer } = require("ws");
const server = new WebSocketServer({ port: Number(process.argv[1]), host: "127.0.0.1", perMessageDeflate: true });
server.on("connection", (ws) => {
  ws.on("error", () => {});
  ws.on("message", (data, binary) => ws.send(data, { binary }));
});
"#;

const NPM_CLIENT: &str = r#"
const assert = require("assert"), { once } = require("events"), fs = require("fs"), http2 = require("http2");
const WebSocket = require("ws");
const [plain, secure, ca] = process.argv.slice(1);
async function talk(ws) {
  const got = [];
  let wake = () => {};
  ws.on("message", (data, binary) => (got.push(binary ? data : data.toString()), wake()));
  const messages = ["hello", "", "x".repeat(500000), Buffer.alloc(70000, 7)];
  for (const message of messages) ws.send(message);
  while (got.length < messages.length) await new Promise((resolve) => (wake = resolve));
  assert.deepStrictEqual(got, messages);
  ws.ping();
  await once(ws, "pong");
  ws.close(4000, "bye");
  const [code, reason] = await once(ws, "close");
  assert.deepStrictEqual([code, reason.toString()], [4000, "bye"]);
}
async function h1(url, options) {
  const ws = new WebSocket(url, { headers: { host: "aa.test" }, ...options });
  await once(ws, "open");
  return ws;
}
// RFC 8441: the stream of an extended CONNECT carries the frames, which ws reads and writes as it does on a socket.
async function h2(session) {
  assert.strictEqual(session.remoteSettings.enableConnectProtocol, true);
  const stream = session.request(
    { ":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": "/chat", ":authority": "aa.test", "sec-websocket-version": "13" },
    { endStream: false });
  const [headers] = await once(stream, "response");
  assert.strictEqual(headers[":status"], 200);
  const ws = new WebSocket(null, undefined, { autoPong: true, closeTimeout: 30000 });
  ws._isServer = false;
  ws.setSocket(stream, Buffer.alloc(0), { maxPayload: 1 << 20, skipUTF8Validation: false, allowSynchronousEvents: true });
  return ws;
}
(async () => {
  await talk(await h1(`ws://127.0.0.1:${plain}/chat`));
  const tls = { ca: fs.readFileSync(ca), servername: "aa.test" };
  await talk(await h1(`wss://127.0.0.1:${secure}/chat`, tls));
  for (const [url, options] of [[`http://127.0.0.1:${plain}`], [`https://127.0.0.1:${secure}`, tls]]) {
    const session = http2.connect(url, options);
    await once(session, "remoteSettings");
    const first = await h2(session);
    await Promise.all([talk(first), h2(session).then(talk)]);
    session.close();
    await once(session, "close");
  }
  console.log("all well");
})();
"#;

/// `FLEX_TEST_NODE` names a Node.js; `NODE_PATH` has npm's `ws`.
fn node(script: &str, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("FLEX_TEST_NODE").unwrap_or_else(|_| "node".into()));
    command.arg("-e").arg(script).arg("--").args(args);
    command
}

#[tokio::test]
async fn websockets_of_npm_work_over_http1_and_http2_in_the_clear_and_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let _server = start(&mut node(NPM_SERVER, &[&port.to_string()]));
    listening(port).await;
    let pair = Pair::new("one", &["aa.test"]);
    let apps = vec![app("aa", Serving, vec![backend(1, ([127, 0, 0, 1], port).into())])];
    let mut world = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() }.start(table(1, apps)).await;
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &pair.certificate.chain).unwrap();
    let (plain, secure) = (world.address.port().to_string(), world.https.unwrap().port().to_string());
    let mut command = tokio::process::Command::from(node(NPM_CLIENT, &[&plain, &secure, ca.to_str().unwrap()]));
    let ended = tokio::time::timeout(Duration::from_secs(50), command.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(ended.status.success() && ended.stdout == b"all well\n", "{}", String::from_utf8_lossy(&ended.stderr));
    // Once both sides have said goodbye nothing is waited for.
    for _ in 0..6 {
        let line = world.line().await;
        assert!(line.starts_with("at=info ") && line.contains(" status=101 "), "{line}");
    }
    world.stop_now().await;
}

const HTTP3_CLIENT: &str = r#"
import asyncio, sys
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http, self.answers = H3Connection(self._quic), {}
    def quic_event_received(self, event):
        for event in self.http.handle_event(event):
            if isinstance(event, (HeadersReceived, DataReceived)):
                head, body, done = self.answers[event.stream_id]
                if isinstance(event, HeadersReceived):
                    head.update(event.headers)
                else:
                    body.extend(event.data)
                if event.stream_ended and not done.done():
                    done.set_result(None)
    async def ask(self, method, path, content=b""):
        stream = self._quic.get_next_available_stream_id()
        answer = self.answers[stream] = ({}, bytearray(), asyncio.get_running_loop().create_future())
        fields = [(b":method", method), (b":scheme", b"https"), (b":authority", b"aa.test"), (b":path", path),
                  (b"user-agent", b"aioquic"), (b"x-long", b"0123456789abcdef" * 40), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
        self.http.send_headers(stream, fields, end_stream=not content)
        if content:
            self.http.send_data(stream, content, end_stream=True)
        self.transmit()
        await asyncio.wait_for(answer[2], 30)
        assert answer[0][b":status"] == b"200", answer
        return bytes(answer[1])
async def main(port, ca):
    tickets = []
    for resumed in [False, True]:
        config = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="aa.test", cafile=ca)
        config.session_ticket = tickets.pop() if resumed else None
        async with connect("127.0.0.1", int(port), configuration=config, create_protocol=Client,
                           session_ticket_handler=tickets.append) as client:
            seen = await client.ask(b"GET", b"/first?x=1")
            assert seen.startswith(b"GET /first?x=1 HTTP/1.1\r\nHost: aa.test\r\n"), seen
            assert b"cookie: a=1; b=2\r\n" in seen and b"0123456789abcdef" * 40 in seen and b"chunked" not in seen, seen
            content = bytes(range(256)) * 2048
            assert (await client.ask(b"POST", b"/up", content)).endswith(content)
            many = await asyncio.gather(*[client.ask(b"GET", b"/%d" % n) for n in range(100)])
            assert all(seen.startswith(b"GET /%d " % n) for n, seen in enumerate(many))
            assert client._quic.tls.session_resumed == resumed
            while not tickets:
                await asyncio.sleep(0.01)
    print("all well")
asyncio.run(main(*sys.argv[1:]))
"#;

#[tokio::test]
async fn http3_of_others_works_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let instance = echo().await;
    let pair = Pair::new("one", &["aa.test"]);
    let apps = vec![app("aa", Serving, vec![backend(1, instance.address)])];
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), tune: |s| s.tls.http3 = true, ..Setup::default() };
    let world = setup.start(table(1, apps)).await;
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &pair.certificate.chain).unwrap();
    let port = world.https.unwrap().port().to_string();
    let mut command = tokio::process::Command::from(python(HTTP3_CLIENT, &[&port, ca.to_str().unwrap()]));
    let ended = tokio::time::timeout(Duration::from_secs(50), command.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(ended.status.success() && ended.stdout == b"all well\n", "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(world.metrics.snapshot().h3_connections, 2);
    world.stop_now().await;
}
