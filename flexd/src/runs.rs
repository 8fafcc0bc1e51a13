//! One-off commands, commands inside instances and looking on: what the controller asks for, answered by the engine of this
//! machine. Only names and shapes change here; nothing is decided.

use async_trait::async_trait;
use flex_controller::ports::{AttachedRun, ExecJob, JobEnd, JobState, RunFault, RunInput, RunJob, RunOutput, RunSession, Runs};
use flex_model::InstanceId;
use flex_runtime::{Attached, ExecSpec, Input, JobSpec, ObservedPhase, Output, Runtime, RuntimeError, Session, TtySize};
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::sync::mpsc;

pub struct RunPort(pub Arc<dyn Runtime>);

fn size((cols, rows): (u16, u16)) -> TtySize {
    TtySize { rows, cols }
}

fn spec(job: RunJob) -> JobSpec {
    JobSpec {
        instance: job.instance,
        app: job.app,
        app_name: job.app_name,
        name: job.name,
        version: job.version,
        spec: job.spec,
        tty: job.tty.map(size),
        stdin: job.stdin,
    }
}

fn fault(e: &RuntimeError) -> RunFault {
    match e {
        RuntimeError::NotFound(_) => RunFault::NotFound(e.to_string()),
        RuntimeError::Refused(_) | RuntimeError::Exceeded(_) => RunFault::Refused(e.to_string()),
        RuntimeError::Unavailable(_) => RunFault::Unavailable(e.to_string()),
    }
}

fn carried(session: Session) -> RunSession {
    let Session { input: to_engine, output, exit: ended, oom } = session;
    let (input, mut orders) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            let order = match order {
                RunInput::Data(data) => Input::Data(data),
                RunInput::Eof => Input::Eof,
                RunInput::Resize(cols, rows) => Input::Resize(TtySize { rows, cols }),
                RunInput::Signal(n) => Input::Signal(n),
            };
            let sent = tokio::select! {
                sent = to_engine.send(order) => sent,
                // What a command that does not read was sent by a client that has gone is of no use.
                () = gone(&orders) => return,
            };
            if sent.is_err() {
                break;
            }
        }
    });
    let output = output.map(|piece| match piece {
        Ok(Output::Stdout(data)) => Ok(RunOutput::Stdout(data)),
        Ok(Output::Stderr(data)) => Ok(RunOutput::Stderr(data)),
        Err(e) => Err(e.to_string()),
    });
    let (done, exit) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let status = match ended.await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("the container was lost".into()),
        };
        let _ = done.send(status);
    });
    RunSession { input, output: output.boxed(), exit, oom }
}

/// Resolves when nobody can send any more and nothing waits: there is nothing to await but that.
pub async fn gone<T>(orders: &mpsc::Receiver<T>) {
    while !(orders.is_closed() && orders.is_empty()) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[async_trait]
impl Runs for RunPort {
    async fn run(&self, job: RunJob) -> Result<RunSession, String> {
        self.0.run_once(spec(job)).await.map(carried).map_err(|e| e.to_string())
    }

    async fn start(&self, job: RunJob) -> Result<(), RunFault> {
        self.0.start_job(spec(job)).await.map_err(|e| fault(&e))
    }

    async fn jobs(&self) -> Result<Vec<JobState>, RunFault> {
        let jobs = self.0.jobs().await.map_err(|e| fault(&e))?;
        let state = |o: flex_runtime::Observed| {
            let ended = match o.phase {
                ObservedPhase::Exited(exit) => Some(JobEnd { status: exit.status, oom: exit.oom, at: exit.at }),
                _ => None,
            };
            JobState { instance: o.instance, ended }
        };
        Ok(jobs.into_iter().map(state).collect())
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), RunFault> {
        self.0.remove_job(instance).await.map_err(|e| fault(&e))
    }

    async fn stop(&self, instance: InstanceId, grace: u32) -> Result<(), RunFault> {
        self.0.stop(instance, grace).await.map_err(|e| fault(&e))
    }

    async fn exec(&self, instance: InstanceId, job: ExecJob) -> Result<RunSession, RunFault> {
        let exec = ExecSpec { argv: job.argv, env: job.env, tty: job.tty.map(size), stdin: true, ..ExecSpec::default() };
        self.0.exec(instance, exec).await.map(carried).map_err(|e| fault(&e))
    }

    async fn attach(&self, instance: InstanceId, lines: u32) -> Result<AttachedRun, RunFault> {
        let Attached { session, tty, stdin } = self.0.attach(instance, lines).await.map_err(|e| fault(&e))?;
        Ok(AttachedRun { session: carried(session), tty, stdin })
    }

    async fn address(&self, instance: InstanceId) -> Result<std::net::IpAddr, RunFault> {
        self.0.address(instance).await.map_err(|e| fault(&e))
    }
}
