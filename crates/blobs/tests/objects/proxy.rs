//! A small HTTP proxy between client and store that does to requests what networks do. One request a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answered by the proxy; the store never sees it.
    Status(u16),
    /// The connection is cut after this many bytes of the request's body.
    CutRequest(usize),
    /// The store does it, and the answer is cut after this many bytes.
    CutAnswer(usize),
    /// The answer comes late.
    Slow(Duration),
    /// One bit of the answer's last byte is another.
    FlipAnswer,
}

/// What is done to requests whose line (`PUT /bucket/key?query`) holds all the words.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) words: Vec<String>,
    pub(crate) fault: Fault,
    /// So many times.
    pub(crate) times: u32,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// Lines of the requests that the store was given as a whole.
    forwarded: Vec<String>,
    /// Faults that happened.
    hits: u32,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub(crate) async fn start(store: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, state) =
            (listener.local_addr().expect("bound"), Arc::new(Mutex::new(State::default())));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move { drop(serve(client, store, &state).await) });
            }
        });
        Self { address, state }
    }

    pub(crate) fn add(&self, words: &[&str], fault: Fault, times: u32) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.state.lock().expect("sound").rules.push(Rule { words, fault, times });
    }

    /// Ends all faults and begins a new record.
    pub(crate) fn heal(&self) {
        *self.state.lock().expect("sound") = State::default();
    }

    pub(crate) fn forwarded(&self) -> Vec<String> {
        self.state.lock().expect("sound").forwarded.clone()
    }

    /// Rules with faults that did not happen.
    pub(crate) fn unused(&self) -> Vec<String> {
        let state = self.state.lock().expect("sound");
        state.rules.iter().filter(|rule| rule.times > 0).map(|rule| format!("{rule:?}")).collect()
    }

    pub(crate) fn hits(&self) -> u32 {
        self.state.lock().expect("sound").hits
    }
}

fn fault_of(state: &Mutex<State>, line: &str) -> Option<Fault> {
    let mut state = state.lock().expect("sound");
    let rule = state
        .rules
        .iter_mut()
        .find(|rule| rule.times > 0 && rule.words.iter().all(|word| line.contains(word.as_str())))?;
    rule.times -= 1;
    let fault = rule.fault.clone();
    state.hits += 1;
    Some(fault)
}

async fn serve(mut client: TcpStream, store: SocketAddr, state: &Mutex<State>) -> io::Result<()> {
    let (head, mut body) = read_head(&mut client).await?;
    let text = String::from_utf8_lossy(&head).into_owned();
    let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let length = header(&text, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0usize);
    let fault = fault_of(state, &line);
    let wanted = if let Some(Fault::CutRequest(at)) = fault { at.min(length) } else { length };
    while body.len() < wanted {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(());
        }
    }
    match fault {
        Some(Fault::CutRequest(_)) => return Ok(()),
        Some(Fault::Status(status)) => {
            let answer =
                format!("HTTP/1.1 {status} Injected\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return client.write_all(answer.as_bytes()).await;
        }
        _ => {}
    }
    state.lock().expect("sound").forwarded.push(line);
    let mut answer = forward(store, &text, &body).await?;
    match fault {
        Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
        Some(Fault::CutAnswer(at)) => answer.truncate(at),
        Some(Fault::FlipAnswer) => *answer.last_mut().expect("an answer") ^= 1,
        _ => {}
    }
    client.write_all(&answer).await
}

async fn read_head(client: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return Ok((bytes, body));
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// With `Connection: close`, so that the end of the answer is the end of the stream.
pub(crate) async fn forward(store: SocketAddr, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(store).await?;
    let is_kept = |line: &&str| !line.to_ascii_lowercase().starts_with("connection:") && !line.is_empty();
    let mut lines: Vec<&str> = head.lines().filter(is_kept).collect();
    lines.push("Connection: close\r\n\r\n");
    server.write_all(lines.join("\r\n").as_bytes()).await?;
    server.write_all(body).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    Ok(answer)
}
