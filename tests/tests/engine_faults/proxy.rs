//! A door before the engine's socket at which a server can be killed between a call and its answer.

use crate::world::kill_now;
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Calls that change something in the engine.
const CHANGES: [&[u8]; 3] = [b"POST /", b"PUT /", b"DELETE /"];

#[derive(Default)]
struct Plan {
    /// Who dies at which change, counted from when this was set.
    victim: Option<(Pid, usize)>,
    /// The changes since then, by their request lines.
    changes: Vec<String>,
    fired: bool,
}

/// The door.
pub struct Proxy {
    pub socket: PathBuf,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Opens one at `socket` before the machine's engine.
    pub fn open(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let plan = Arc::new(Mutex::new(Plan::default()));
        let shared = plan.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let plan = shared.clone();
                std::thread::spawn(move || serve(client, &plan));
            }
        });
        Self { socket, plan }
    }

    /// From now on `victim` dies when the `n`th change (the first is 1) has been made and before it hears of it.
    pub fn kill_at(&self, victim: Pid, n: usize) {
        *self.plan.lock().unwrap() = Plan { victim: Some((victim, n)), ..Plan::default() };
    }

    /// Whether it happened, and the changes since it was planned.
    pub fn spare(&self) -> (bool, Vec<String>) {
        let plan = std::mem::take(&mut *self.plan.lock().unwrap());
        (plan.fired, plan.changes)
    }
}

fn serve(mut client: UnixStream, plan: &Arc<Mutex<Plan>>) {
    let Ok(mut engine) = UnixStream::connect(Path::new("/var/run/docker.sock")) else { return };
    let (Ok(mut to_client), Ok(mut from_engine)) = (client.try_clone(), engine.try_clone()) else { return };
    let doomed = Arc::new(Mutex::new(None::<Pid>));
    let (seen, shared) = (doomed.clone(), plan.clone());
    let back = std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(n) = from_engine.read(&mut bytes) {
            if let Some(victim) = seen.lock().unwrap().take() {
                kill_now(victim);
                shared.lock().unwrap().fired = true;
                let _ = to_client.shutdown(Shutdown::Both);
                return;
            }
            if n == 0 || to_client.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Write);
    });
    let mut bytes = vec![0; 64 << 10];
    while let Ok(n) = client.read(&mut bytes) {
        // The client opens a connection for each request and writes its head in one piece.
        if CHANGES.iter().any(|c| bytes[..n].starts_with(c)) {
            let mut plan = plan.lock().unwrap();
            let line = bytes[..n].split(|b| *b == b'\r').next().unwrap_or_default();
            plan.changes.push(String::from_utf8_lossy(line).into_owned());
            if let Some((victim, at)) = plan.victim
                && plan.changes.len() == at
            {
                *doomed.lock().unwrap() = Some(victim);
            }
        }
        if n == 0 || engine.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = engine.shutdown(Shutdown::Write);
    let _ = back.join();
}
