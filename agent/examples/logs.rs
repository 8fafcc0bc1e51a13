//! What `scripts/bench logs` measures: an engine's files read, stored, followed and searched, in one process as in `flexd`.
//!
//! `logs SECONDS MEGABYTES [json-file]`: how long lines are written at a steady rate, and how much text is searched; the last
//! word has the files written in that form, as for containers of earlier versions, and not in that of the `local` driver.

use flex_agent::{Source, Tailer};
use flex_logs::{LogQuery, LogSettings, LogStore, TextFilter};
use flex_model::{AppId, InstanceId, Timestamp, Uuid};
use flex_runtime::LogForm;
use futures_util::StreamExt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Lines a second that one host's agent must take.
const RATE: u64 = 100_000;
/// As the agent tells the engine to rotate.
const FILE_BYTES: u64 = 10 << 20;
const FILES: usize = 3;

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_micros(i64::try_from(now.as_micros()).unwrap())
}

/// About 180 bytes, as web apps write them.
fn text(n: u64, out: &mut String) {
    use std::fmt::Write as _;
    let mix = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    out.clear();
    let _ = write!(
        out,
        "level=info n={n} method={} path=/api/v2/items/{}/comments request_id={mix:016x} remote=10.{}.{}.{} status={} duration={}.{:03}ms bytes={} agent=Mozilla/5.0",
        ["GET", "GET", "GET", "POST"][(mix >> 60) as usize & 3],
        (mix >> 32) % 5000,
        mix & 255,
        (mix >> 8) & 255,
        (mix >> 16) & 255,
        [200, 200, 200, 304, 404, 500][(mix >> 20) as usize % 6],
        (mix >> 40) % 90,
        (mix >> 50) % 1000,
        (mix >> 24) % 60_000,
    );
}

/// The engine's files.
struct Engine {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Engine {
    fn new(path: PathBuf) -> Self {
        Self { file: File::create(&path).unwrap(), path, length: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.length > FILE_BYTES {
            let name = |n: usize| if n == 0 { self.path.clone() } else { PathBuf::from(format!("{}.{n}", self.path.display())) };
            for n in (0..FILES - 1).rev() {
                let _ = fs::rename(name(n), name(n + 1));
            }
            (self.file, self.length) = (File::create(&self.path).unwrap(), 0);
        }
        self.file.write_all(bytes).unwrap();
        self.length += bytes.len() as u64;
    }
}

fn put_line(form: LogForm, text: &str, out: &mut Vec<u8>) {
    let at = now();
    if form == LogForm::JsonFile {
        let _ = writeln!(out, r#"{{"log":"{text}\n","stream":"stdout","time":"{at}"}}"#);
        return;
    }
    let start = out.len();
    out.extend_from_slice(b"\0\0\0\0\x0a\x06stdout\x10");
    put_number(at.micros().cast_unsigned() * 1000, out);
    out.push(0x1a);
    put_number(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
    let length = u32::try_from(out.len() - start - 4).unwrap().to_be_bytes();
    out[start..start + 4].copy_from_slice(&length);
    out.extend_from_slice(&length);
}

/// As protocol buffers have it.
fn put_number(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Processor time of this process's threads with that name, or of all.
fn processor(thread: Option<&str>) -> Duration {
    let mut ticks = 0;
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(") ") else { continue };
        if thread.is_none_or(|name| head.ends_with(&format!("({name}"))) {
            let fields: Vec<&str> = rest.split(' ').collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    Duration::from_millis(ticks * 10)
}

fn agent_processor() -> Duration {
    processor(Some("flex-tail")) + processor(Some("flex-logs"))
}

fn source(dir: &Path, form: LogForm, n: u128) -> Source {
    let (instance, app) = (InstanceId(Uuid::from_u128(n)), AppId(Uuid::from_u128(n)));
    Source { instance, attempt: 0, app, name: "web.1".into(), path: dir.join(format!("{n}.log")), form, ended: false }
}

fn store(dir: &Path) -> Arc<LogStore> {
    let settings =
        LogSettings { lines_per_second: 1 << 30, burst_lines: 1 << 40, max_bytes_per_app: 8 << 30, ..LogSettings::default() };
    Arc::new(LogStore::open(dir.join("store"), settings).unwrap())
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p) as usize]
}

/// One app at the full rate, and one beside it that writes now and then and is followed.
async fn steady(dir: &Path, form: LogForm, seconds: u64) {
    let logs = store(dir);
    let sources = vec![source(dir, form, 1), source(dir, form, 2)];
    let (mut loud, mut quiet) = (Engine::new(sources[0].path.clone()), Engine::new(sources[1].path.clone()));
    let tailer = Tailer::start(dir, logs.clone()).unwrap();
    tailer.sources(sources.clone()).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (began, before) = (Instant::now(), agent_processor());
    let writer = std::thread::spawn({
        let (stop, written) = (stop.clone(), written.clone());
        move || {
            let (mut line, mut bytes, mut n) = (String::new(), Vec::new(), 0u64);
            while !stop.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * RATE as f64) as u64;
                bytes.clear();
                while n < due {
                    text(n, &mut line);
                    put_line(form, &line, &mut bytes);
                    n += 1;
                }
                loud.write(&bytes);
                written.store(n, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let pinger = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut bytes = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                bytes.clear();
                put_line(form, "ping", &mut bytes);
                quiet.write(&bytes);
                std::thread::sleep(Duration::from_millis(23));
            }
        }
    });
    let mut late = Vec::new();
    let mut follower = logs.follow(sources[1].app, LogQuery::newest(0));
    let end = began + Duration::from_secs(seconds);
    while let Ok(Some(line)) = tokio::time::timeout_at(end.into(), follower.next()).await {
        late.push(now().since(line.at).as_secs_f64() * 1000.0);
    }
    let (took, used) = (began.elapsed(), agent_processor() - before);
    let stored = logs.written(sources[0].app).unwrap();
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    pinger.join().unwrap();
    late.sort_by(f64::total_cmp);
    let rate = stored as f64 / took.as_secs_f64();
    let lag = written.load(Ordering::Relaxed).saturating_sub(stored);
    println!(
        r#"{{"what": "steady: lines/s stored", "value": {rate:.0}, "cores of the agent": {:.2}, "lines behind at the end": {lag}}}"#,
        used.as_secs_f64() / took.as_secs_f64()
    );
    println!(
        r#"{{"what": "tail of a neighbour meanwhile: ms", "p50": {:.0}, "p99": {:.0}, "max": {:.0}, "lines": {}}}"#,
        percentile(&late, 0.5),
        percentile(&late, 0.99),
        late[late.len() - 1],
        late.len()
    );
}

/// A backlog, as fast as it goes; then a search through all of it.
async fn backlog_and_search(dir: &Path, form: LogForm, megabytes: u64) {
    let logs = store(dir);
    let mut from = source(dir, form, 3);
    let mut out = std::io::BufWriter::with_capacity(1 << 20, File::create(&from.path).unwrap());
    let (mut line, mut bytes, mut raw, mut lines) = (String::new(), Vec::new(), 0u64, 0u64);
    while raw < megabytes << 20 {
        text(lines, &mut line);
        bytes.clear();
        put_line(form, &line, &mut bytes);
        out.write_all(&bytes).unwrap();
        raw += line.len() as u64 + 1;
        lines += 1;
    }
    out.flush().unwrap();
    drop(out);
    let tailer = Tailer::start(dir, logs.clone()).unwrap();
    let (began, before) = (Instant::now(), agent_processor());
    from.ended = true;
    while logs.written(from.app).unwrap() < lines {
        // Each call reads for a while at most.
        tailer.sources(vec![from.clone()]).await;
        assert!(logs.flush().await);
    }
    let (took, used) = (began.elapsed().as_secs_f64(), (agent_processor() - before).as_secs_f64());
    println!(
        r#"{{"what": "backlog: lines/s", "value": {:.0}, "µs of processor a line": {:.2}}}"#,
        lines as f64 / took,
        used * 1e6 / lines as f64
    );
    let disk = logs.bytes(from.app).unwrap();
    println!(
        r#"{{"what": "bytes on disk per byte of text", "value": {:.3}, "MiB of text": {}}}"#,
        disk as f64 / raw as f64,
        raw >> 20
    );
    let id = format!("{:016x}", (lines / 2).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let pattern = |text: &str| TextFilter::pattern(text).unwrap();
    let text = |text: &str| TextFilter::contains(text).unwrap();
    // How many lines there are to be found. The last four are those that an index helps least with, or not at all.
    for (what, filter, number) in [
        ("a text that is nowhere", text("no such text anywhere"), 0),
        ("a text in one line", text(&format!("n={} ", lines / 3)), 1),
        ("an id in one line", text(&id), 1),
        ("a pattern in one line", pattern(&format!("^level=info n={} ", lines / 3)), 1),
        ("the newest 100 with a word of every line", text("duration="), 100),
        ("words of every line that never follow each other", text("status=200 duration=200"), 0),
        ("a word in any case that is nowhere", pattern("(?i)timeout"), 0),
        ("three letters that are nowhere", text("zzq"), 0),
    ] {
        let query = LogQuery { lines: 100, text: Some(filter), ..LogQuery::default() };
        let (mut times, mut used) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (began, before) = (Instant::now(), processor(None));
            let found = logs.query(from.app, query.clone()).await.unwrap();
            assert_eq!(found.len(), number, "{what}");
            times.push(began.elapsed().as_secs_f64());
            used.push((processor(None) - before).as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        used.sort_by(f64::total_cmp);
        println!(
            r#"{{"what": "search, one core: {what}, s", "value": {:.2}, "s of processor": {:.2}, "GB of text": {:.2}}}"#,
            times[1],
            used[1],
            raw as f64 / 1e9
        );
    }
}

/// Processor time of all engines of this machine so far.
fn dockerd() -> Duration {
    let mut ticks = 0;
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(") ") else { continue };
        if head.ends_with("(dockerd") {
            let fields: Vec<&str> = rest.split(' ').collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    Duration::from_millis(ticks * 10)
}

/// The engine's own ways of taking lines, which everything above stands on.
fn floor(dir: &Path, lines: u64) -> Result<(), String> {
    let run = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned()) } else { Err(said) }
    };
    let busybox = run("sh", &["-c", "command -v busybox"])?;
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).map_err(|e| e.to_string())?;
    fs::copy(busybox, root.join("bin/busybox")).map_err(|e| e.to_string())?;
    let (image, tar) = (format!("flex-bench-logs:{}", std::process::id()), dir.join("root.tar"));
    let tar = tar.to_str().unwrap_or_default();
    run("tar", &["-C", root.to_str().unwrap_or_default(), "-cf", tar, "."])?;
    run("docker", &["import", tar, &image])?;
    let write = format!(
        "/bin/busybox yes 'level=info method=GET path=/api/v2/items/1234/comments status=200 duration=12.345ms' | /bin/busybox head -n {lines}"
    );
    let took = |driver: &str| {
        // As the agent has them, without those of files for the driver that writes none.
        let options =
            ["--log-driver", driver, "--log-opt", "max-size=10m", "--log-opt", "max-file=3", "--log-opt", "compress=false"];
        let options = if driver == "none" { &options[..2] } else { &options[..] };
        let line = format!("{write} > /dev/stderr");
        let (began, before) = (Instant::now(), dockerd());
        run("docker", &[&["run", "--rm"], options, &[&image, "/bin/busybox", "sh", "-c", &line]].concat())?;
        Ok::<_, String>((began.elapsed().as_secs_f64(), (dockerd() - before).as_secs_f64()))
    };
    let all: Result<Vec<_>, String> = ["local", "json-file", "none"].into_iter().map(|d| Ok((d, took(d)?))).collect();
    let removed = run("docker", &["image", "rm", "-f", &image]);
    for (driver, (seconds, used)) in all? {
        println!(
            r#"{{"what": "floor: docker with the log driver {driver}, lines/s of one container", "value": {:.0}, "µs of dockerd a line": {:.2}}}"#,
            lines as f64 / seconds,
            used * 1e6 / lines as f64
        );
    }
    removed.map(drop)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let number = |n: usize, default: u64| std::env::args().nth(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (seconds, megabytes) = (number(1, 20), number(2, 1000));
    let disk = std::env::var_os("FLEX_BENCH_DISK").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(disk).unwrap();
    let form = if std::env::args().nth(3).as_deref() == Some("json-file") { LogForm::JsonFile } else { LogForm::Local };
    steady(dir.path(), form, seconds).await;
    backlog_and_search(dir.path(), form, megabytes).await;
    if let Err(e) = floor(dir.path(), megabytes * 1000) {
        println!("the floor was not measured: {e}");
    }
}
