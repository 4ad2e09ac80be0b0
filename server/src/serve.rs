//! Wires the stages together and runs them until told to stop.
//!
//! Stopping is orderly: streams are ended, what was received is written and
//! acknowledged, then the store is closed. It does not have to be, since what was
//! acknowledged survives anything.

use std::{
    future::Future,
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use everflame_proto::v1::{deploys_server::DeploysServer, query_server::QueryServer};
use tokio::{net::TcpListener, sync::watch, task, time};
use tonic::service::Routes;

use crate::{
    api::{self, ApiState},
    causes::with_causes,
    config::Config,
    deploys::{grpc::DeploysService, registry::Registry},
    ingest::{Ingest, grpc::IngestService, wire::PushServer, writer::Writer},
    metrics::Metrics,
    query::{engine::Engine, grpc::QueryService, time::now_unix_ns},
    stopping::told_to_stop,
    store::{EmbeddedStore, Store, StoreError},
};

/// How long connections may take to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(5);
/// Batches that are decoded at a time, per CPU.
const VALIDATIONS_PER_CPU: usize = 2;

/// Why the collector cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}; pass another --listen")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system refuses something basic.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs the collector until `stop` completes. Prints `listening on ADDRESS` once it
/// takes connections.
///
/// # Errors
/// When it cannot start, or can no longer take connections.
pub async fn serve(
    config: Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let io = |action| move |source| ServeError::Io { action, source };
    let metrics = Metrics::new();
    let options = config.store_options();
    let data_dir = config.data_dir.clone();
    let opened = task::spawn_blocking(move || EmbeddedStore::open(&data_dir, options)).await;
    let opened = opened.map_err(io::Error::other).map_err(io("open the store"))?;
    let store: Arc<dyn Store> = Arc::new(opened?);
    let of_store = Arc::clone(&store);
    let deploys = task::spawn_blocking(move || Registry::open(of_store)).await;
    let deploys = deploys.map_err(io::Error::other).map_err(io("read which deploys there were"))?;
    let deploys = Arc::new(deploys?);
    let address = config.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })?;
    let (writer, writer_thread) =
        Writer::start(Arc::clone(&store), config.queue_limits(), Arc::clone(&metrics))
            .map_err(io("start the writer thread"))?;
    let (stopping, stopped) = watch::channel(false);
    let maintenance = task::spawn(maintain(
        Arc::clone(&store),
        Arc::clone(&deploys),
        Arc::clone(&metrics),
        config.maintenance_interval,
        stopped.clone(),
    ));
    let router =
        router(&config, Arc::clone(&store), &deploys, writer.clone(), &metrics, stopped.clone());

    let address = listener.local_addr().map_err(io("ask for the address"))?;
    announce(address).map_err(io("print the address"))?;
    let mut until = stopped.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        told_to_stop(&mut until).await;
    });
    let mut server = task::spawn(server.into_future());
    let served = tokio::select! {
        served = &mut server => served,
        () = stop => {
            tracing::info!("stopping");
            let _ = stopping.send(true);
            match time::timeout(GRACE, &mut server).await {
                Ok(served) => served,
                Err(_slow) => {
                    tracing::warn!("connections did not end in time; closing them");
                    server.abort();
                    Ok(Ok(()))
                }
            }
        }
    };
    let _ = stopping.send(true);
    let _ = maintenance.await;
    close(store, deploys, &writer, writer_thread).await;
    served.map_err(io::Error::other).and_then(|served| served).map_err(io("take connections"))
}

fn router(
    config: &Config,
    store: Arc<dyn Store>,
    deploys: &Arc<Registry>,
    writer: Writer,
    metrics: &Arc<Metrics>,
    stopping: watch::Receiver<bool>,
) -> axum::Router {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let ingest = Ingest::new(
        Arc::clone(&store),
        writer,
        config.batch_limits(),
        cpus * VALIDATIONS_PER_CPU,
        Arc::clone(deploys),
        Arc::clone(metrics),
    );
    let engine = Engine::new(Arc::clone(&store), config.query_limits(cpus), Arc::clone(metrics));
    let ingest = PushServer::new(IngestService::new(ingest, stopping), config.max_message_bytes());
    let query = QueryServer::new(QueryService::new(engine.clone()));
    let of_deploys = DeploysServer::new(DeploysService::new(Arc::clone(deploys), engine.clone()));
    let grpc = Routes::new(ingest).add_service(query).add_service(of_deploys);
    let grpc = grpc.prepare().into_axum_router();
    let (deploys, metrics) = (Arc::clone(deploys), Arc::clone(metrics));
    let http = api::router(ApiState { engine, store, deploys, metrics });
    http.merge(grpc.reset_fallback()).fallback(api::not_found)
}

/// Scripts and tests that pass port 0 read this line.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

async fn maintain(
    store: Arc<dyn Store>,
    deploys: Arc<Registry>,
    metrics: Arc<Metrics>,
    interval: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    let mut ticks = time::interval(interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = told_to_stop(&mut stopping) => return,
            _ = ticks.tick() => {}
        }
        let (store, of_store) = (Arc::clone(&store), Arc::clone(&deploys));
        let round = move || {
            let now = now_unix_ns();
            // Each is tried whatever becomes of the other.
            (store.maintain(now), of_store.forget_old(now).and_then(|()| of_store.save()))
        };
        metrics.deploys_refused(deploys.refused());
        let (maintained, saved) = match task::spawn_blocking(round).await {
            Ok(done) => done,
            Err(err) => {
                tracing::error!(error = with_causes(&err), "maintenance crashed");
                continue;
            }
        };
        match maintained {
            Ok(maintained) => metrics.maintained(&maintained),
            Err(err) => tracing::warn!(error = with_causes(&err), "maintenance failed"),
        }
        if let Err(err) = saved {
            tracing::warn!(error = with_causes(&err), "cannot write which deploys there were");
        }
    }
}

/// Waits until what was received is written. Handles to the store and the writer may
/// live on in connections that do not end.
async fn close(
    store: Arc<dyn Store>,
    deploys: Arc<Registry>,
    writer: &Writer,
    writer_thread: thread::JoinHandle<()>,
) {
    writer.stop().await;
    let closed = task::spawn_blocking(move || {
        if writer_thread.join().is_err() {
            tracing::error!("the writer thread crashed");
        }
        if let Err(err) = deploys.save() {
            // It is found again in the profiles.
            tracing::warn!(error = with_causes(&err), "cannot write which deploys there were");
        }
        drop((deploys, store));
    });
    if time::timeout(GRACE, closed).await.is_err() {
        tracing::warn!("the store did not close in time; it will recover at the next start");
    }
}
