//! An agent's worker API in this process: scripted answers over a real Unix socket, and a way to go away and come back.

use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast_proto::status::Failure;
use outlast_proto::worker::v1::signal::Kind;
use outlast_proto::worker::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use outlast_proto::worker::v1::{
    BeginSaveRequest, BeginSaveResponse, OpenSlotsRequest, OpenSlotsResponse, ReadyRequest, ReadyResponse,
    RegisterRequest, RegisterResponse, ReportRequest, ReportResponse, SaveCheckpointRequest,
    SaveCheckpointResponse, SaveStagedRequest, SaveStagedResponse, Signal, SignalsRequest, Slot,
    WaitCheckpointRequest, WaitCheckpointResponse, WaitSavedRequest,
};
use outlast_staging::{DATA_AT, SlotHeader, SlotState};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// What the agent has seen, and what it will say. Outlives its restarts.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) reports: Mutex<Vec<ReportRequest>>,
    pub(crate) saves: Mutex<Vec<SaveCheckpointRequest>>,
    pub(crate) registrations: Mutex<u32>,
    /// Set by `FakeAgent::start`; a restart may say something else.
    pub(crate) identity: Mutex<RegisterResponse>,
    pub(crate) fenced: Mutex<Option<String>>,
    pub(crate) due: Mutex<bool>,
    /// Reports wait here while it is set.
    pub(crate) hold: Mutex<bool>,
    pub(crate) release: Notify,
    pub(crate) seals: Mutex<VecDeque<Result<WaitCheckpointResponse, Status>>>,
    /// What `begin_save` says; else it hands out a slot.
    pub(crate) begins: Mutex<VecDeque<Result<BeginSaveResponse, Status>>>,
    pub(crate) staged: Mutex<Vec<SaveStagedRequest>>,
    /// What `wait_saved` says; else it is saved.
    pub(crate) saved: Mutex<VecDeque<Result<SaveCheckpointResponse, Status>>>,
    /// What is not in `seals` is sealed; else nobody ever answers.
    pub(crate) seal_all: Mutex<bool>,
    signals: Mutex<Option<mpsc::Sender<Result<Signal, Status>>>>,
    root: PathBuf,
}

impl Script {
    fn check(&self) -> Result<(), Status> {
        match self.fenced.lock().expect("no panic").clone() {
            Some(reason) => Err(Failure::Fenced { reason }.into()),
            None => Ok(()),
        }
    }

    pub(crate) fn signal(&self, kind: Kind) -> bool {
        let sender = self.signals.lock().expect("no panic").clone();
        sender.is_some_and(|sender| sender.try_send(Ok(Signal { kind: kind.into() })).is_ok())
    }

    /// Where the bytes of the save at `step` are.
    pub(crate) fn kept(&self, step: u64) -> PathBuf {
        self.root.join("kept").join(step.to_string())
    }

    pub(crate) fn steps(&self) -> Vec<u64> {
        self.reports.lock().expect("no panic").iter().map(|report| report.step).collect()
    }
}

impl Script {
    pub(crate) fn slot_path(&self) -> PathBuf {
        self.root.join("slot")
    }

    fn slot(&self, index: u32, size_bytes: u64) -> Slot {
        let path = self.slot_path();
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
        file.expect("made").set_len(DATA_AT + size_bytes).expect("room");
        Slot { index, path: path.display().to_string(), size_bytes, in_memory: true, sequence: 41 }
    }

    /// Keeps what lies in the slot, as its header says.
    fn unpack_slot(&self, step: u64) {
        let mut slot = std::fs::File::open(self.slot_path()).expect("it is there");
        let header = SlotHeader::read(&slot).expect("a good header");
        let attempt = self.identity.lock().expect("no panic").attempt.clone();
        assert_eq!(
            (header.state, header.step, header.sequence, header.attempt.to_string()),
            (SlotState::Staged, step, 41, attempt)
        );
        slot.seek(SeekFrom::Start(DATA_AT)).expect("a file");
        let kept = self.kept(step);
        let _ = std::fs::remove_dir_all(&kept);
        outlast_blobs::unpack(slot.take(header.length), &kept, outlast_blobs::PackLimits::CHECKPOINT)
            .expect("an archive");
    }
}

fn saved_answer() -> SaveCheckpointResponse {
    SaveCheckpointResponse { checkpoint: "ck7".into(), size_bytes: 5, root: "ab".repeat(32), skipped: false }
}

struct Handler(Arc<Script>);

#[tonic::async_trait]
impl WorkerService for Handler {
    type SignalsStream = ReceiverStream<Result<Signal, Status>>;

    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        self.0.check()?;
        *self.0.registrations.lock().expect("no panic") += 1;
        Ok(Response::new(self.0.identity.lock().expect("no panic").clone()))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        self.0.reports.lock().expect("no panic").push(request.into_inner());
        loop {
            let released = self.0.release.notified();
            if !*self.0.hold.lock().expect("no panic") {
                break;
            }
            released.await;
        }
        self.0.check()?;
        let checkpoint_due = *self.0.due.lock().expect("no panic");
        Ok(Response::new(ReportResponse { checkpoint_due, stop: false }))
    }

    async fn ready(&self, _: Request<ReadyRequest>) -> Result<Response<ReadyResponse>, Status> {
        self.0.check()?;
        Ok(Response::new(ReadyResponse {}))
    }

    async fn save_checkpoint(
        &self,
        request: Request<SaveCheckpointRequest>,
    ) -> Result<Response<SaveCheckpointResponse>, Status> {
        self.0.check()?;
        let request = request.into_inner();
        let path = Path::new(&request.directory);
        if !path.exists() {
            let reason = format!("{} is no folder", request.directory);
            return Err(Failure::Rejected { reason, hint: "write it first".into() }.into());
        }
        // What was handed over is kept under its step, as the agent does.
        if path.is_dir() {
            copy_folder(path, &self.0.kept(request.step));
        }
        *self.0.due.lock().expect("no panic") = false;
        self.0.saves.lock().expect("no panic").push(request);
        Ok(Response::new(saved_answer()))
    }

    async fn open_slots(
        &self,
        request: Request<OpenSlotsRequest>,
    ) -> Result<Response<OpenSlotsResponse>, Status> {
        self.0.check()?;
        let slots = [0, 1].map(|index| self.0.slot(index, request.get_ref().size_bytes)).to_vec();
        Ok(Response::new(OpenSlotsResponse { slots }))
    }

    async fn begin_save(
        &self,
        request: Request<BeginSaveRequest>,
    ) -> Result<Response<BeginSaveResponse>, Status> {
        self.0.check()?;
        if let Some(answer) = self.0.begins.lock().expect("no panic").pop_front() {
            return answer.map(Response::new);
        }
        let slot = Some(self.0.slot(1, request.into_inner().size_bytes));
        Ok(Response::new(BeginSaveResponse { slot, ..Default::default() }))
    }

    async fn save_staged(
        &self,
        request: Request<SaveStagedRequest>,
    ) -> Result<Response<SaveStagedResponse>, Status> {
        self.0.check()?;
        let request = request.into_inner();
        if request.failed.is_empty() {
            self.0.unpack_slot(request.step);
            *self.0.due.lock().expect("no panic") = false;
            let (step, directory) = (request.step, String::new());
            let save = SaveCheckpointRequest { step, directory, in_turn: false };
            self.0.saves.lock().expect("no panic").push(save);
        }
        self.0.staged.lock().expect("no panic").push(request);
        Ok(Response::new(SaveStagedResponse {}))
    }

    async fn wait_saved(
        &self,
        _: Request<WaitSavedRequest>,
    ) -> Result<Response<SaveCheckpointResponse>, Status> {
        let next = self.0.saved.lock().expect("no panic").pop_front();
        next.unwrap_or_else(|| Ok(saved_answer())).map(Response::new)
    }

    async fn wait_checkpoint(
        &self,
        _: Request<WaitCheckpointRequest>,
    ) -> Result<Response<WaitCheckpointResponse>, Status> {
        let next = self.0.seals.lock().expect("no panic").pop_front();
        match next {
            Some(answer) => answer.map(Response::new),
            None if *self.0.seal_all.lock().expect("no panic") => {
                Ok(Response::new(WaitCheckpointResponse { sealed: true, reason: String::new() }))
            }
            None => std::future::pending().await,
        }
    }

    async fn signals(&self, _: Request<SignalsRequest>) -> Result<Response<Self::SignalsStream>, Status> {
        let (sender, stream) = mpsc::channel(8);
        *self.0.signals.lock().expect("no panic") = Some(sender);
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

pub(crate) struct FakeAgent {
    pub(crate) script: Arc<Script>,
    pub(crate) socket: PathBuf,
    runtime: Option<Runtime>,
    _root: tempfile::TempDir,
}

impl FakeAgent {
    pub(crate) fn start() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let identity = Mutex::new(RegisterResponse {
            job: "j1".into(),
            job_name: "digits".into(),
            attempt: "j1/0@1.3".into(),
            rank: 1,
            world_size: 2,
            restore_dir: String::new(),
            restore_step: 0,
            checkpoint_dir: root.path().join("checkpoints").to_str().expect("UTF-8").into(),
        });
        let script = Arc::new(Script { identity, root: root.path().to_owned(), ..Script::default() });
        let socket = root.path().join("worker.sock");
        let mut agent = Self { script, socket, runtime: None, _root: root };
        agent.come_back();
        agent
    }

    pub(crate) fn root(&self) -> &Path {
        &self.script.root
    }

    /// All connections break and the socket is gone, as when the agent's process dies.
    pub(crate) fn go_away(&mut self) {
        self.runtime.take().expect("it is there").shutdown_timeout(Duration::from_secs(5));
        *self.script.signals.lock().expect("no panic") = None;
        std::fs::remove_file(&self.socket).expect("the socket was there");
    }

    pub(crate) fn come_back(&mut self) {
        let runtime = Runtime::new().expect("threads");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&self.socket).expect("a free socket")
        };
        let service = WorkerServiceServer::new(Handler(Arc::clone(&self.script)));
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        self.runtime = Some(runtime);
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a new folder");
    for entry in std::fs::read_dir(from).expect("it is there") {
        let file = entry.expect("it is there");
        if file.file_type().expect("it is there").is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).expect("room on the disk");
        }
    }
}

/// Waits for a condition, generously.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(25), "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
