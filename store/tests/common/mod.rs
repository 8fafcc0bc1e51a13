//! A process that commits without pause and says so on stdout, for tests that end it in the middle: the test binary itself,
//! started again on one test that does nothing unless it is told to.

use flex_store::{EmbeddedStore, Engine, StateStore, Write, open};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const DIR: &str = "FLEX_TEST_WRITER_DIR";
const ENGINE: &str = "FLEX_TEST_WRITER_ENGINE";
/// Keys that the writer goes round: enough that batches touch different pages.
const KEYS: u64 = 50;

/// Body of the test that is the writer. Returns at once in an ordinary run.
pub fn writer() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = std::env::var(ENGINE).unwrap().parse().unwrap();
    let store = open(Path::new(&dir), engine).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut n, mut out) = (count(&store), std::io::stdout().lock());
    loop {
        n += 1;
        let text = n.to_string().into_bytes();
        // A second key of varying length: a torn batch would leave the two apart.
        let filler = [text.clone(), vec![b' '; (n % 700) as usize]].concat();
        let writes = vec![Write::Put("n".into(), text), Write::Put(format!("k/{}", n % KEYS), filler)];
        runtime.block_on(store.commit(vec![], writes)).unwrap();
        writeln!(out, "acknowledged {n}").unwrap();
        out.flush().unwrap();
    }
}

fn number(store: &EmbeddedStore, key: &str) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let entry = runtime.block_on(store.get(key)).unwrap().0;
    entry.map_or(0, |e| std::str::from_utf8(&e.value).unwrap().trim().parse().unwrap())
}

fn count(store: &EmbeddedStore) -> u64 {
    number(store, "n")
}

/// A running writer and the highest commit that it has acknowledged.
pub struct Writer {
    pub child: Child,
    acknowledged: Arc<AtomicU64>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    /// Starts it on a data directory; `test` is the name of the test whose body is [`writer`].
    pub fn start(test: &str, dir: &Path, engine: Engine) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env(ENGINE, engine.name())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (seen, lines) = (acknowledged.clone(), BufReader::new(child.stdout.take().unwrap()).lines());
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The test harness may have begun the line with the test's name.
                if let Some((_, n)) = line.split_once("acknowledged ") {
                    seen.store(n.parse().unwrap(), Ordering::SeqCst);
                }
            }
        });
        Self { child, acknowledged, reader: Some(reader) }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until it has acknowledged more than `n`.
    pub fn wait_beyond(&mut self, n: u64) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while self.acknowledged() <= n {
            assert!(self.child.try_wait().unwrap().is_none(), "the writer ended by itself");
            assert!(std::time::Instant::now() < deadline, "the writer does not get beyond {n}");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// kill -9, then what it had acknowledged by then.
    pub fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        self.acknowledged()
    }
}

/// Opens what the writer left and checks that nothing acknowledged is missing and nothing is torn. Returns the count.
pub fn verify(dir: &Path, engine: Engine, acknowledged: u64) -> u64 {
    let store = open(dir, engine).unwrap_or_else(|e| panic!("{} after {acknowledged}: {e}", engine.name()));
    let n = count(&store);
    assert!(n >= acknowledged, "{}: {acknowledged} was acknowledged, {n} is there", engine.name());
    for back in 0..n.min(KEYS) {
        let k = (n - back) % KEYS;
        assert_eq!(number(&store, &format!("k/{k}")), n - back, "{}: torn at {}", engine.name(), n - back);
    }
    n
}
