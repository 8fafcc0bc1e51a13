//! The store as its users see it: what was added is read back, followed, kept within bounds, and survives.

use flex_logs::{LogQuery, LogSettings, LogStore, TextFilter};
use flex_model::{AppId, LogLine, LogSource, LogText, Timestamp, ids::Uuid};
use futures_util::StreamExt;
use std::{fs, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

fn app(n: u128) -> AppId {
    AppId(Uuid::from_u128(n))
}

fn line(n: u64) -> LogLine {
    let at = Timestamp::from_micros(1_000_000_000 + n as i64);
    LogLine { at, source: LogSource::App, process: format!("web.{}", n % 2), text: format!("line {n}").into() }
}

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, unlimited()).unwrap()
}

fn unlimited() -> LogSettings {
    LogSettings { burst_lines: u64::MAX / 1_000_000, first_sweep: Duration::from_secs(1), ..LogSettings::default() }
}

fn numbers(lines: &[LogLine]) -> Vec<u64> {
    lines.iter().map(|l| l.text.as_str().unwrap().strip_prefix("line ").unwrap().parse().unwrap()).collect()
}

fn files(dir: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .map(|d| d.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == extension)).collect())
        .unwrap_or_default();
    found.sort();
    found
}

#[tokio::test]
async fn reads_back_from_memory_and_disk_as_one() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    for n in 0..20_000 {
        store.append(app(1), line(n));
    }
    assert!(store.flush().await);
    let all = store.query(app(1), LogQuery::newest(usize::MAX)).await.unwrap();
    assert_eq!(numbers(&all), (0..20_000).collect::<Vec<_>>());
    let some = store.query(app(1), LogQuery::newest(3)).await.unwrap();
    assert_eq!(numbers(&some), [19_997, 19_998, 19_999]);
    let odd = LogQuery { process: Some("web.1".into()), lines: 5_000, ..LogQuery::default() };
    assert_eq!(numbers(&store.query(app(1), odd).await.unwrap()), (10_001..20_000).step_by(2).collect::<Vec<_>>());
    let window = LogQuery { since: Some(line(100).at), until: Some(line(102).at), ..LogQuery::default() };
    assert_eq!(numbers(&store.query(app(1), window).await.unwrap()), [100, 101, 102]);
    assert!(store.query(app(2), LogQuery::default()).await.unwrap().is_empty());
    assert!(!dir.path().join(app(2).to_string()).exists(), "asking makes no directory");
}

#[tokio::test]
async fn lines_survive_a_restart_and_get_on() {
    let dir = TempDir::new().unwrap();
    for round in 0..4 {
        let store = open(dir.path());
        for n in round * 7_000..(round + 1) * 7_000 {
            store.append(app(1), line(n));
        }
        drop(store);
        let store = open(dir.path());
        let all = store.query(app(1), LogQuery::newest(usize::MAX)).await.unwrap();
        assert_eq!(numbers(&all), (0..(round + 1) * 7_000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn torn_ends_are_cut() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    for n in 0..10_000 {
        store.append(app(1), line(n));
    }
    drop(store);
    let app_dir = dir.path().join(app(1).to_string());
    for (extension, cut) in [("wal", 3), ("seg", 5)] {
        let newest = files(&app_dir, extension).pop().unwrap();
        let file = fs::OpenOptions::new().write(true).open(&newest).unwrap();
        file.set_len(file.metadata().unwrap().len() - cut).unwrap();
        let store = open(dir.path());
        let before = store.query(app(1), LogQuery::newest(usize::MAX)).await.unwrap();
        assert!(before.len() < 10_000);
        store.append(app(1), LogLine { text: "line 77777".into(), ..line(0) });
        drop(store);
        let store = open(dir.path());
        let after = numbers(&store.query(app(1), LogQuery::newest(usize::MAX)).await.unwrap());
        assert_eq!(after[..after.len() - 1], numbers(&before));
        assert_eq!(after.last(), Some(&77_777));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_sees_each_line_once() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(open(dir.path()));
    for n in 0..5_000 {
        store.append(app(1), line(n));
    }
    let writer = std::thread::spawn({
        let store = store.clone();
        move || (5_000..30_000).for_each(|n| store.append(app(1), line(n)))
    });
    let seen: Vec<_> = store.follow(app(1), LogQuery::newest(usize::MAX)).take(30_000).collect().await;
    assert_eq!(numbers(&seen), (0..30_000).collect::<Vec<_>>());
    writer.join().unwrap();
}

async fn fill(store: &LogStore, megabytes: u64) {
    for n in 0..megabytes * 100 {
        // Text that does not shrink to nothing.
        let text: String = (0..600u64).map(|i| format!("{:016x}", (n * 600 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        store.append(app(1), LogLine { text: text.into(), ..line(n) });
        if n % 500 == 499 {
            assert!(store.flush().await);
        }
    }
    assert!(store.flush().await);
}

#[tokio::test]
async fn a_slow_follower_misses_nothing_that_is_kept() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    store.append(app(1), line(0));
    let mut follower = store.follow(app(1), LogQuery::newest(1));
    assert_eq!(follower.next().await.unwrap().text, "line 0");
    fill(&store, 40).await;
    for n in 0..4_000 {
        assert_eq!(follower.next().await.unwrap().at, line(n).at);
    }
}

#[tokio::test]
async fn a_slow_follower_is_told_what_it_missed() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), LogSettings { max_bytes_per_app: 4 << 20, ..unlimited() }).unwrap();
    store.append(app(1), line(0));
    let mut follower = store.follow(app(1), LogQuery::newest(1));
    assert_eq!(follower.next().await.unwrap().text, "line 0");
    fill(&store, 40).await;
    store.append(app(1), line(2));
    let (mut missed, mut got) = (0, 0);
    loop {
        let line = follower.next().await.unwrap();
        if line.text == "line 2" {
            break;
        } else if line.source == LogSource::Flex {
            let text = line.text.as_str().unwrap();
            assert!(text.starts_with("Error L11"), "{text}");
            missed += text.split(' ').rev().nth(1).unwrap().parse::<u64>().unwrap();
        } else {
            got += 1;
        }
    }
    assert!(missed > 0);
    assert_eq!(missed + got, 4_000);
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_what_follows() {
    let dir = TempDir::new().unwrap();
    let numbered = |item| match item {
        flex_logs::Tail::Line(n) => (n.seq, n.line.text.to_string()),
        other => panic!("no line: {other:?}"),
    };
    let last = {
        let store = open(dir.path());
        (0..5_000).for_each(|n| store.append(app(1), line(n)));
        assert!(store.flush().await);
        let seen: Vec<_> = store.tail(app(1), LogQuery::newest(10), None).take(10).map(numbered).collect().await;
        assert_eq!(seen[9], (4_999, "line 4999".into()));
        seen[4].0
    };
    let store = open(dir.path());
    (5_000..20_000).for_each(|n| store.append(app(1), line(n)));
    assert!(store.flush().await);
    let rest = store.tail(app(1), LogQuery::newest(3), Some(last + 1)).take(20_000 - 4_995);
    let rest: Vec<_> = rest.map(numbered).collect().await;
    assert_eq!(rest, (4_995..20_000).map(|n| (n, format!("line {n}"))).collect::<Vec<_>>());
    // A number that was never given.
    let mut ahead = store.tail(app(1), LogQuery::newest(3), Some(1 << 40));
    assert_eq!(ahead.next().await.unwrap(), flex_logs::Tail::Live(20_000));
    store.append(app(1), line(20_000));
    assert_eq!(numbered(ahead.next().await.unwrap()).0, 20_000);
}

#[tokio::test]
async fn the_past_is_told_by_time() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    for n in [0, 2, 4, 1, 3, 5] {
        store.append(app(1), line(n));
    }
    // A clock that stepped back does not turn a process's own lines round.
    store.append(app(1), LogLine { process: "web.0".into(), text: "line 6".into(), ..line(1) });
    let all = store.query(app(1), LogQuery::newest(10)).await.unwrap();
    assert_eq!(numbers(&all), [0, 1, 2, 3, 4, 6, 5]);
}

#[tokio::test]
async fn retention_of_one_app_is_its_own() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store, 8).await;
    let before = store.bytes(app(1)).unwrap();
    assert!(before > 3 << 20, "{before}");
    let small = flex_logs::Retention { max_bytes: 1 << 20, ..store.default_retention() };
    store.set_retention(app(1), Some(small)).await.unwrap();
    assert_eq!((store.retention(app(1)), store.retention(app(2))), (small, store.default_retention()));
    fill(&store, 8).await;
    assert!(store.bytes(app(1)).unwrap() < 2 << 20);
}

#[tokio::test]
async fn too_fast_an_app_is_cut_and_told_while_the_platform_is_not() {
    let dir = TempDir::new().unwrap();
    let settings = LogSettings { lines_per_second: 10, burst_lines: 100, ..LogSettings::default() };
    let store = LogStore::open(dir.path(), settings).unwrap();
    for _ in 0..1_000 {
        store.append(app(1), line(0));
        store.append(app(1), LogLine { source: LogSource::Flex, ..line(1) });
    }
    let note = LogQuery { process: Some("logs".into()), ..LogQuery::default() };
    let note = tokio::time::timeout(Duration::from_secs(20), store.follow(app(1), note).next()).await.unwrap().unwrap();
    assert!(note.text.to_str_lossy().contains("900 lines dropped"), "{}", note.text);
    let platform = LogQuery { source: Some(LogSource::Flex), lines: 5_000, ..LogQuery::default() };
    let lines = store.query(app(1), platform).await.unwrap();
    assert_eq!(lines.iter().filter(|l| l.text == "line 1").count(), 1_000);
}

#[tokio::test]
async fn size_is_bounded_and_the_newest_stay() {
    let dir = TempDir::new().unwrap();
    let settings = LogSettings { max_bytes_per_app: 200_000, ..unlimited() };
    let store = LogStore::open(dir.path(), settings).unwrap();
    for n in 0..200_000 {
        // Digits of squares, so that lines do not shrink to nothing.
        let text = format!("line {n}");
        store.append(app(1), LogLine { text: text.into(), process: format!("w{}", n * n * 7_919), ..line(n) });
        if n % 10_000 == 0 {
            assert!(store.flush().await);
        }
    }
    assert!(store.flush().await);
    let app_dir = dir.path().join(app(1).to_string());
    let bytes: u64 = files(&app_dir, "seg").iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert!((50_000..=200_000).contains(&bytes), "{bytes}");
    let left = numbers(&store.query(app(1), LogQuery::newest(usize::MAX)).await.unwrap());
    assert!(left.len() < 200_000 && left.len() > 1_000, "{}", left.len());
    assert_eq!(left, (200_000 - left.len() as u64..200_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn old_files_go() {
    let dir = TempDir::new().unwrap();
    let old = dir.path().join(app(1).to_string());
    drop({
        let store = open(dir.path());
        (0..10_000).for_each(|n| store.append(app(1), line(n)));
        store
    });
    let week_ago = std::time::SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    for path in files(&old, "seg").into_iter().chain(files(&old, "wal")) {
        fs::File::options().write(true).open(path).unwrap().set_modified(week_ago).unwrap();
    }
    let store = open(dir.path());
    store.append(app(2), line(1));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !files(&old, "seg").is_empty() || !files(&old, "wal").is_empty() {
        assert!(std::time::Instant::now() < deadline, "old files are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.query(app(2), LogQuery::default()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_dropped_app_stays_away_and_its_followers_end() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    store.append(app(1), line(0));
    let mut follower = store.follow(app(1), LogQuery::newest(1));
    assert!(follower.next().await.is_some());
    store.drop_app(app(1)).await.unwrap();
    assert!(follower.next().await.is_none());
    store.append(app(1), line(1));
    assert!(store.flush().await);
    assert!(store.query(app(1), LogQuery::default()).await.unwrap().is_empty());
    assert!(!dir.path().join(app(1).to_string()).exists());
    store.drop_app(app(3)).await.unwrap();
}

#[tokio::test]
async fn text_with_line_ends_and_long_text_become_lines() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    store.append(app(1), LogLine { text: "a\r\nb\n".into(), ..line(0) });
    store.append(app(1), LogLine { text: "x".repeat(25_000).into(), ..line(0) });
    let lines = store.query(app(1), LogQuery::default()).await.unwrap();
    let lengths: Vec<_> = lines.iter().map(|l| l.text.len()).collect();
    assert_eq!(lengths, [1, 1, 10_240, 10_240, 25_000 - 10_240 - (10_240 - 12) + 12]);
    assert!(lines[3].text.as_bytes().starts_with(b"[continued] "));
}

#[tokio::test]
async fn bytes_that_are_not_utf8_are_kept_on_disk_and_found() {
    let dir = TempDir::new().unwrap();
    let texts: Vec<LogText> = (0..=255u8).filter(|b| *b != b'\n').map(|b| [b'<', b, b, b'>'].to_vec().into()).collect();
    {
        let store = open(dir.path());
        store.append_all(app(1), texts.iter().map(|t| LogLine { text: t.clone(), ..line(0) }));
        assert!(store.flush().await);
    }
    let store = open(dir.path());
    let lines = store.query(app(1), LogQuery::newest(1_000)).await.unwrap();
    assert_eq!(lines.into_iter().map(|l| l.text).collect::<Vec<_>>(), texts);
    let query = LogQuery { text: Some(TextFilter::pattern(r"(?-u)^<\xff\xff>$").unwrap()), ..LogQuery::default() };
    let found = store.query(app(1), query).await.unwrap();
    assert_eq!(found.into_iter().map(|l| l.text).collect::<Vec<_>>(), texts[254..]);
}

/// A block as earlier versions wrote it: without an index, and with one checksum for head and data.
fn block_of_old(first: u64, lines: &[LogLine]) -> Vec<u8> {
    let mut entries = Vec::new();
    for l in lines {
        let len = (10 + l.process.len() + l.text.len()) as u32;
        entries.extend_from_slice(&len.to_le_bytes());
        entries.extend_from_slice(&l.at.micros().to_le_bytes());
        entries.extend_from_slice(&[u8::from(l.source == LogSource::Flex), l.process.len() as u8]);
        entries.extend_from_slice(l.process.as_bytes());
        entries.extend_from_slice(l.text.as_bytes());
    }
    let data = zstd::bulk::compress(&entries, 1).unwrap();
    let mut block = b"FLB1".to_vec();
    for n in [data.len(), entries.len(), lines.len()] {
        block.extend_from_slice(&(n as u32).to_le_bytes());
    }
    block.extend_from_slice(&first.to_le_bytes());
    block.extend_from_slice(&lines.first().unwrap().at.micros().to_le_bytes());
    block.extend_from_slice(&lines.last().unwrap().at.micros().to_le_bytes());
    let crc = crc32fast::hash(&[&block[..], &data].concat());
    block.extend_from_slice(&crc.to_le_bytes());
    block.extend_from_slice(&data);
    block.extend_from_slice(&(block.len() as u32 + 4).to_le_bytes());
    block
}

#[tokio::test]
async fn segments_of_earlier_versions_are_read_and_go_on() {
    let dir = TempDir::new().unwrap();
    let app_dir = dir.path().join(app(1).to_string());
    fs::create_dir_all(&app_dir).unwrap();
    let old: Vec<LogLine> = (0..300).map(line).collect();
    let segment = app_dir.join("00000000000000000000.seg");
    // The last block is torn.
    let torn = block_of_old(300, &old[..50]);
    fs::write(&segment, [&block_of_old(0, &old[..100])[..], &block_of_old(100, &old[100..]), &torn[..torn.len() - 7]].concat())
        .unwrap();
    let store = open(dir.path());
    assert_eq!(numbers(&store.query(app(1), LogQuery::newest(1_000)).await.unwrap()), (0..300).collect::<Vec<_>>());
    // More than a block, so that one of today's form follows in the same file.
    for n in 300..10_000 {
        store.append(app(1), line(n));
    }
    assert!(store.flush().await);
    drop(store);
    assert_eq!(files(&app_dir, "seg"), [segment.as_path()]);
    let bytes = fs::read(&segment).unwrap();
    for form in [b"FLB1", b"FLB2"] {
        assert!(bytes.windows(4).any(|w| w == form), "blocks of both forms");
    }
    let store = open(dir.path());
    let all = store.query(app(1), LogQuery::newest(usize::MAX)).await.unwrap();
    assert_eq!(numbers(&all), (0..10_000).collect::<Vec<_>>());
    for (filter, found) in [
        (TextFilter::contains("line 277").unwrap(), vec![277, 2770, 2771, 2772, 2773, 2774, 2775, 2776, 2777, 2778, 2779]),
        (TextFilter::contains("e 42").unwrap(), (0..10_000).filter(|n| n.to_string().starts_with("42")).collect()),
        (TextFilter::pattern("^line (17|9999)$").unwrap(), vec![17, 9_999]),
        (TextFilter::contains("Line 277").unwrap(), vec![]),
    ] {
        let query = LogQuery { text: Some(filter), ..LogQuery::newest(usize::MAX) };
        assert_eq!(numbers(&store.query(app(1), query).await.unwrap()), found);
    }
}

#[tokio::test]
async fn a_disk_that_fails_loses_nothing_once_it_works_again() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let blocked = dir.path().join(app(1).to_string());
    assert!(store.query(app(1), LogQuery::default()).await.unwrap().is_empty());
    fs::write(&blocked, "in the way").unwrap();
    for n in 0..20_000 {
        store.append(app(1), line(n));
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.flush().await {
        assert!(std::time::Instant::now() < deadline, "the failure was never noticed");
    }
    fs::remove_file(&blocked).unwrap();
    while !store.flush().await {
        assert!(std::time::Instant::now() < deadline, "never written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(store);
    let all = numbers(&open(dir.path()).query(app(1), LogQuery::newest(usize::MAX)).await.unwrap());
    assert_eq!(all, (0..20_000).collect::<Vec<_>>());
}

#[test]
fn a_backlog_of_one_app_does_not_keep_another_waiting() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), unlimited()).unwrap();
    let written = |n: u128| {
        let dir = dir.path().join(app(n).to_string());
        let files = files(&dir, "seg").into_iter().chain(files(&dir, "wal"));
        files.map(|f| f.metadata().unwrap().modified().unwrap()).max().unwrap()
    };
    let text = "many words ".repeat(900);
    // The backlog is written by the time that the neighbour's line comes, where this thread does not get to run: not ten times.
    let in_turns = (0..10).any(|_| {
        store.append_all(app(1), (0..800).map(|n| LogLine { text: text.as_str().into(), ..line(n) }));
        store.append(app(2), line(0));
        assert!(store.flush_blocking());
        written(2) < written(1)
    });
    assert!(in_turns);
}
