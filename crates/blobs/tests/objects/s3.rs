//! A real S3-compatible server over HTTP: moto from PyPI, in the environment that `cargo xtask test` makes.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use super::proxy::{Proxy, forward};

/// Python on a busy machine; the usual is one second.
const START_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct S3 {
    _server: Server,
    pub(crate) proxy: Proxy,
}

struct Server(Child);

/// Beside this build's output.
fn python_env() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder").join("python-env")
}

impl S3 {
    /// A server with an empty bucket named `bucket`, and a proxy before it. `None`, said plainly, where there is no moto.
    pub(crate) async fn start() -> Option<Self> {
        let program = python_env().join("bin/moto_server");
        if !program.is_file() {
            eprintln!(
                "skipped: no S3 server at {}; `cargo xtask test` (or `cargo xtask python`) installs it, with python3, pip \
                 and a package index",
                program.display()
            );
            return None;
        }
        // Any free port: the server says which, and nobody can take it in between.
        let mut server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1")
            // Parts as small as the tests like them; the real limit is 5 MiB.
            .env("S3_UPLOAD_PART_MIN_SIZE", "1024")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let output = server.stderr.take().expect("piped");
        // Ended by its own pid when this guard goes, whatever happens.
        let server = Server(server);
        let listening = tokio::task::spawn_blocking(move || listening(output));
        let listening = tokio::time::timeout(START_TIMEOUT, listening).await;
        let address = listening.expect("the S3 server listens in time").expect("no panic");
        let s3 = Self { _server: server, proxy: Proxy::start(address).await };
        let made = ask(address, "PUT /bucket").await.expect("an answer");
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        Some(s3)
    }

    pub(crate) fn vars(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.proxy.address);
        [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret-of-the-test"),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_PROFILE", "not known to the builder, and harmless"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the server says of its address; it listens then. The rest of its talk is read and dropped, so that it never blocks.
fn listening(output: ChildStderr) -> SocketAddr {
    let mut lines = BufReader::new(output).lines();
    let said = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once("Running on http://")?;
        rest.trim().parse().ok()
    });
    std::thread::spawn(move || lines.for_each(drop));
    said.expect("the S3 server ended without listening")
}

async fn ask(address: SocketAddr, line: &str) -> std::io::Result<String> {
    let head = format!("{line} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n");
    let answer = forward(address, &head, b"").await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
