//! SIGKILL at any moment: nothing acknowledged is lost, nothing counts twice.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use everflame_proto::v1::{self, Batch, Outcome};
use harness::{Push, Server, batches, everything};
use tonic::transport::Channel;

const KILLS: usize = 20;
const SENDERS: usize = 4;
/// Batches of one sender that wait for an acknowledgement at a time.
const IN_FLIGHT: usize = 8;
/// Thirty of them (they compress to half) fill what the store keeps in memory.
const BULK_BYTES: usize = 1 << 20;

/// Batches by id, with what they add to the sum.
type Batches = HashMap<Vec<u8>, (Batch, i64)>;

/// What one sender has done, and has to do again.
#[derive(Default)]
struct Ledger {
    acknowledged_samples: i64,
    acknowledged: usize,
    duplicates: usize,
    unacknowledged: Batches,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_loses_nothing_acknowledged_and_counts_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let ledgers: Vec<_> = (0..SENDERS).map(|_| Arc::new(Mutex::new(Ledger::default()))).collect();
    let next_value = Arc::new(AtomicI64::new(1));
    for kill in 0..KILLS {
        let server = Server::start(dir.path());
        let mut senders = Vec::new();
        for (n, ledger) in ledgers.iter().enumerate() {
            let (ledger, next_value) = (Arc::clone(ledger), Arc::clone(&next_value));
            let channel = server.channel().await;
            senders.push(tokio::spawn(load(channel, n, ledger, next_value)));
        }
        // Each round dies at another moment, some while starting up still matters.
        tokio::time::sleep(Duration::from_millis(40 + 23 * kill as u64)).await;
        server.kill();
        for sender in senders {
            sender.await.unwrap();
        }
    }

    let server = Server::start(dir.path());
    let sum = |ledgers: &[Arc<Mutex<Ledger>>]| -> i64 {
        ledgers.iter().map(|ledger| ledger.lock().unwrap().acknowledged_samples).sum()
    };
    let at_least = sum(&ledgers);
    let at_most: i64 = at_least
        + ledgers
            .iter()
            .flat_map(|ledger| {
                let ledger = ledger.lock().unwrap();
                ledger.unacknowledged.values().map(|(_, value)| *value).collect::<Vec<_>>()
            })
            .sum::<i64>();
    let stored = stored_samples(&server).await;
    assert!((at_least..=at_most).contains(&stored), "{at_least} <= {stored} <= {at_most}");

    // What was not acknowledged is sent again with the same id, as an agent does.
    for ledger in &ledgers {
        let unacknowledged = std::mem::take(&mut ledger.lock().unwrap().unacknowledged);
        let mut push = server.push_stream().await;
        for (batch, value) in unacknowledged.into_values() {
            let ack = push.send(batch).await.unwrap();
            note(&mut ledger.lock().unwrap(), &ack, value);
        }
    }
    assert_eq!(stored_samples(&server).await, sum(&ledgers));
    let batches: usize = ledgers.iter().map(|ledger| ledger.lock().unwrap().acknowledged).sum();
    let duplicates: usize = ledgers.iter().map(|ledger| ledger.lock().unwrap().duplicates).sum();
    println!(
        "{batches} batches acknowledged over {KILLS} kills, {duplicates} of them as duplicates"
    );
    assert!(batches > KILLS * SENDERS, "only {batches} batches: the load was no load");
}

/// Sends until the server is gone: first what it has not acknowledged, then more.
async fn load(
    channel: Channel,
    sender: usize,
    ledger: Arc<Mutex<Ledger>>,
    next_value: Arc<AtomicI64>,
) {
    let Ok(mut push) = Push::open(channel).await else { return };
    let resend: Vec<_> =
        ledger.lock().unwrap().unacknowledged.values().map(|(batch, _)| batch.clone()).collect();
    // Counts nothing, but takes room.
    let bulk = batches::bulky("", "bulk", 0, BULK_BYTES).profiles.swap_remove(0);
    let mut in_flight = 0;
    for batch in resend {
        if !push.put(batch).await {
            return;
        }
        in_flight += 1;
    }
    loop {
        while in_flight < IN_FLIGHT {
            let value = next_value.fetch_add(1, Ordering::Relaxed);
            // Some large ones, so that memory is written to files in between.
            let mut batch = batches::simple(&format!("host-{sender}"), "api", value);
            if value % 4 == 0 {
                batch.profiles.push(bulk.clone());
            }
            let id = batch.batch_id.clone();
            ledger.lock().unwrap().unacknowledged.insert(id, (batch.clone(), value));
            if !push.put(batch).await {
                return;
            }
            in_flight += 1;
        }
        let Ok(ack) = push.answer().await else { return };
        in_flight -= 1;
        let mut ledger = ledger.lock().unwrap();
        let (_, value) = ledger.unacknowledged.remove(&ack.batch_id).unwrap();
        note(&mut ledger, &ack, value);
    }
}

fn note(ledger: &mut Ledger, ack: &v1::BatchAck, value: i64) {
    match ack.outcome() {
        Outcome::Stored => {}
        Outcome::Duplicate => ledger.duplicates += 1,
        other => panic!("{other:?}: {}", ack.message),
    }
    ledger.acknowledged += 1;
    ledger.acknowledged_samples += value;
}

async fn stored_samples(server: &Server) -> i64 {
    let mut selection = everything("cpu", "").unwrap();
    selection.sample_type = "samples".to_owned();
    let request = v1::TopRequest { selection: Some(selection), limit: 0 };
    server.query().await.top(request).await.unwrap().into_inner().total_value
}
