//! kill -9 of the process that writes: no line is lost that was said to be written, none is doubled, none is damaged.

use flex_logs::{LogQuery, LogSettings, LogStore};
use flex_model::{AppId, LogLine, LogSource, Timestamp, ids::Uuid};
use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

const CHILD: &str = "FLEX_LOGS_TEST_DIR";

fn app() -> AppId {
    AppId(Uuid::from_u128(1))
}

fn open(dir: &Path) -> LogStore {
    // Small, so that blocks and segments are finished all the time.
    let settings = LogSettings { segment_bytes: 20_000, burst_lines: 1 << 40, ..LogSettings::default() };
    LogStore::open(dir, settings).unwrap()
}

fn text(n: u64) -> String {
    format!("{n} {:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(3)
}

/// Not a test by itself: the process that is killed.
#[test]
fn child() {
    let Some(dir) = env::var_os(CHILD) else { return };
    let store = open(Path::new(&dir));
    let lines = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(store.query(app(), LogQuery::newest(usize::MAX)))
        .unwrap();
    let mut out = std::io::stdout();
    for n in lines.len() as u64.. {
        let line = LogLine {
            at: Timestamp::from_micros(n as i64),
            source: LogSource::App,
            process: "web.1".into(),
            text: text(n).into(),
        };
        store.append(app(), line);
        if n % 97 == 0 && store.flush_blocking() {
            writeln!(out, "written {n}").unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_written_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = 0;
    for round in 0..12u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let numbers = said.lines().map_while(Result::ok).filter_map(|l| l.rsplit_once("written ")?.1.parse::<u64>().ok());
        for (heard, n) in numbers.enumerate() {
            written = n;
            // In the middle of its work, and what it said before it died is read to the end.
            if heard as u64 == 3 + round * 7 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let lines = open(dir.path()).query(app(), LogQuery::newest(usize::MAX)).await.unwrap();
        assert!(lines.len() as u64 > written, "{} lines of {written} are left", lines.len());
        for (n, line) in lines.iter().enumerate() {
            assert_eq!(line.text, text(n as u64));
        }
    }
    assert!(written > 1_000, "too little was written to show anything: {written}");
}
