//! The client against coordinators that die, hang, refuse and come back.

mod fake;

use std::time::Duration;

use fake::{Mood, dead_url, eventually, start};
use outlast_client::{BundleFile, Client, ClientError};
use outlast_proto::control::v1::{JobLogsRequest, JobLogsResponse, LogLine, ReadShardResponse};
use outlast_proto::status::Failure;
use tonic::Status;

/// Far more than any of these tests needs.
const PATIENCE: Duration = Duration::from_secs(30);

fn client(urls: &[&str]) -> Client {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    Client::new(urls).expect("addresses are good").with_timeout(PATIENCE)
}

fn no_leader() -> Failure {
    Failure::Unavailable {
        reason: "no leader".into(),
        hint: "wait for the election".into(),
        retry_after_ms: 20,
    }
}

#[tokio::test]
async fn a_dead_first_coordinator_is_passed_over() {
    let alive = start(Mood::Serves).await;
    let job = client(&[&dead_url().await, &alive.url]).get_job("j1").await.expect("the second answers");
    assert_eq!(job.id, "j1");
}

#[tokio::test]
async fn a_hung_coordinator_holds_nobody_up_and_the_request_id_stays() {
    let (hung, alive) = (start(Mood::Hangs).await, start(Mood::Serves).await);
    let answer =
        client(&[&hung.url, &alive.url]).submit_job("{}".into(), String::new()).await.expect("is taken");
    assert_eq!(answer.job_id, "j1");
    let of = |running: &fake::Running| running.fake.request_ids.lock().expect("unpoisoned").clone();
    assert_eq!(of(&hung), of(&alive), "one request, one id");
    assert_eq!(of(&alive).len(), 1);
}

#[tokio::test]
async fn a_status_that_takes_its_time_is_waited_for() {
    // Longer than any other call waits for one coordinator: this one waits for a leader that does not come.
    let alone = start(Mood::Slow(Duration::from_millis(2_500))).await;
    client(&[&dead_url().await, &alone.url]).cluster_status().await.expect("what it knows");
}

#[tokio::test]
async fn a_retry_is_the_same_request() {
    let busy = start(Mood::Refuses(no_leader())).await;
    let fake = busy.fake.clone();
    let call = tokio::spawn({
        let client = client(&[&busy.url]);
        async move { client.submit_job("{}".into(), String::new()).await }
    });
    eventually("three tries", || fake.request_ids.lock().expect("unpoisoned").len() >= 3).await;
    *fake.mood.lock().expect("unpoisoned") = Mood::Serves;
    assert!(call.await.expect("does not panic").is_ok());
    let mut ids = fake.request_ids.lock().expect("unpoisoned").clone();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test]
async fn final_refusals_are_not_retried_and_keep_their_words() {
    let hint = "`outlast job list` shows what there is".to_owned();
    let refusing = start(Mood::Refuses(Failure::NotFound { what: "job x".into(), hint: hint.clone() })).await;
    let error = client(&[&refusing.url]).get_job("x").await.expect_err("is refused");
    assert!(matches!(&error, ClientError::NotFound { what, .. } if what == "job x"), "{error:?}");
    assert_eq!(error.hint(), hint);
}

#[tokio::test]
async fn unreachable_says_who_was_asked_and_why_it_failed() {
    let dead = dead_url().await;
    let busy = start(Mood::Refuses(no_leader())).await;
    let short = client(&[&dead, &busy.url]).with_timeout(Duration::from_millis(300));
    let error = short.get_job("j1").await.expect_err("nobody serves");
    let ClientError::Unreachable { tried, answered: true, hint, .. } = error else { panic!("{error:?}") };
    let why = |url: &str| tried.iter().find(|tried| tried.endpoint == url).map(|tried| tried.why.as_str());
    assert_eq!(why(&dead), Some("connection refused"));
    assert_eq!(why(&busy.url), Some("no leader"));
    assert_eq!(hint, "wait for the election");
}

#[tokio::test]
async fn a_client_that_was_given_one_coordinator_survives_its_death() {
    let (first, second) = (start(Mood::Serves).await, start(Mood::Serves).await);
    *first.fake.peers.lock().expect("unpoisoned") = vec![second.url.clone()];
    let client = client(&[&first.url]);
    client.get_job("j1").await.expect("the first answers");
    eventually("the second is learned", || client.endpoints().contains(&second.url)).await;
    first.kill();
    client.get_job("j1").await.expect("the second answers");
}

fn lines(rank: u32, seqs: std::ops::Range<u64>) -> JobLogsResponse {
    let line = |seq| LogLine {
        attempt: "a".into(),
        rank,
        seq,
        text: format!("{rank}/{seq}").into_bytes(),
        ..LogLine::default()
    };
    JobLogsResponse { lines: seqs.map(line).collect() }
}

#[tokio::test]
async fn a_followed_log_goes_on_at_another_coordinator_without_gap_or_repeat() {
    let (first, second) = (start(Mood::Serves).await, start(Mood::Serves).await);
    *first.fake.log_batches.lock().expect("unpoisoned") = vec![lines(0, 0..3), lines(1, 0..1)];
    *first.fake.log_end.lock().expect("unpoisoned") = Some(Status::unavailable("dies"));
    // This one repeats lines, as a coordinator does that knows nothing of cursors.
    *second.fake.log_batches.lock().expect("unpoisoned") = vec![lines(0, 1..5), lines(1, 0..2)];
    let client = client(&[&first.url, &second.url]);
    let mut stream = client.job_logs(JobLogsRequest { job: "j1".into(), follow: true, ..Default::default() });
    let mut seen = Vec::new();
    while let Some(line) = stream.next().await.expect("goes on") {
        seen.push(String::from_utf8(line.text).expect("text"));
    }
    assert_eq!(seen, ["0/0", "0/1", "0/2", "1/0", "0/3", "0/4", "1/1"]);
    let asked = second.fake.log_requests.lock().expect("unpoisoned").clone();
    let cursors: Vec<_> = asked[0].cursors.iter().map(|cursor| (cursor.rank, cursor.next_seq)).collect();
    assert_eq!(cursors, [(0, 3), (1, 1)]);
}

#[tokio::test]
async fn events_go_on_behind_the_last_one_seen() {
    let (first, second) = (start(Mood::Serves).await, start(Mood::Serves).await);
    let mut stream = client(&[&first.url, &second.url]).watch_events("", 10);
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(stream.next().await.expect("goes on").index);
    }
    assert_eq!(seen, [10, 11, 12, 13, 14, 15]);
}

#[tokio::test]
async fn a_bundle_is_sent_whole_and_to_one_that_lives() {
    let alive = start(Mood::Serves).await;
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| n as u8).collect();
    let path =
        std::env::temp_dir().join(format!("outlast-client-bundle-{}", outlast_client::new_request_id()));
    std::fs::write(&path, &bytes).expect("writes");
    let digest = outlast_types::Digest([7; 32]);
    let bundle = BundleFile { path: path.clone(), digest, size_bytes: bytes.len() as u64 };
    let client = client(&[&dead_url().await, &alive.url]);
    let answer = client.upload_bundle(&bundle, |_| ()).await.expect("arrives");
    std::fs::remove_file(&path).expect("is there");
    assert_eq!((answer.digest, answer.size_bytes), (digest.to_string(), bytes.len() as u64));
    assert_eq!(*alive.fake.uploaded.lock().expect("unpoisoned"), bytes);
}

#[tokio::test]
async fn a_backup_comes_whole_or_not_at_all() {
    let (first, second) = (start(Mood::Serves).await, start(Mood::Serves).await);
    let read = async |url: &str| {
        let mut stream = client(&[url]).backup_cluster().await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await? {
            bytes.extend(piece.chunk);
        }
        Ok::<_, ClientError>(bytes)
    };
    assert_eq!(read(&first.url).await.expect("whole"), b"first second");
    *second.fake.log_end.lock().expect("unpoisoned") = Some(Status::unavailable("dies"));
    let err = read(&second.url).await.expect_err("it broke off");
    assert!(err.to_string().contains("broke off"), "{err}");
}

/// `bytes` in pieces of three, said to be the shard `sealed`.
fn pieces(bytes: &[u8], sealed: &[u8]) -> Vec<ReadShardResponse> {
    let root = blake3::hash(sealed).as_bytes().to_vec();
    let head = ReadShardResponse { root, size_bytes: sealed.len() as u64, ..Default::default() };
    let piece = |data: &[u8]| ReadShardResponse { data: data.to_vec(), ..Default::default() };
    std::iter::once(head).chain(bytes.chunks(3).map(piece)).collect()
}

async fn read_whole(client: &Client) -> Result<Vec<u8>, ClientError> {
    let mut stream = client.read_shard("j1", "ck1", 0);
    let mut bytes = Vec::new();
    while let Some(news) = stream.next().await? {
        bytes.extend(news);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_shard_goes_on_at_another_coordinator_behind_what_came_already() {
    let (first, second) = (start(Mood::Serves).await, start(Mood::Serves).await);
    let sealed = b"weights and more weights";
    *first.fake.shard_pieces.lock().expect("unpoisoned") = pieces(&sealed[..10], sealed);
    *first.fake.shard_end.lock().expect("unpoisoned") = Some(Status::unavailable("dies"));
    *second.fake.shard_pieces.lock().expect("unpoisoned") = pieces(sealed, sealed);
    let bytes = read_whole(&client(&[&first.url, &second.url])).await.expect("goes on");
    assert_eq!(bytes, sealed);
}

#[tokio::test]
async fn a_shard_that_is_not_the_sealed_one_is_never_whole() {
    let fake = start(Mood::Serves).await;
    let sealed = b"weights and more weights";
    for wrong in [&b"weights and more weightz"[..], b"weights", b""] {
        *fake.fake.shard_pieces.lock().expect("unpoisoned") = pieces(wrong, sealed);
        let error = read_whole(&client(&[&fake.url])).await.expect_err("other bytes");
        assert!(
            matches!(&error, ClientError::Failed { reason } if reason.contains("other bytes")),
            "{error}"
        );
    }
}
