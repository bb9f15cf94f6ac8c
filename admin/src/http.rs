//! The admin pages: `/metrics` for Prometheus, `/healthz` for load balancers, `/status` for people.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What `/healthz` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// 200.
    Healthy,
    /// 503, with the reason as text.
    Unhealthy(String),
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the admin pages on {listen}: {error}; change listen in [admin]")]
pub struct BindError {
    listen: SocketAddr,
    error: std::io::Error,
}

/// The running listener; dropping it ends it.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Where it listens; tells the port when the config said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Pages<S, H> {
    registry: Arc<Registry>,
    status: S,
    health: H,
}

/// Binds the address and serves the pages from a task of their own.
///
/// Call it before opening anything else, so that a taken port stops the start. `status` and
/// `health` are called for each request; `status` may have to ask somebody first, and gets what stands behind `?`
/// in its request.
pub async fn serve<S, F, H>(
    listen: SocketAddr,
    registry: Arc<Registry>,
    status: S,
    health: H,
) -> Result<AdminServer, BindError>
where
    S: Fn(Option<String>) -> F + Send + Sync + 'static,
    F: Future<Output = serde_json::Value> + Send + 'static,
    H: Fn() -> Health + Send + Sync + 'static,
{
    let bind = |error| BindError { listen, error };
    let listener = TcpListener::bind(listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let pages = Arc::new(Pages {
        registry,
        status,
        health,
    });
    let router = Router::new()
        .route("/metrics", get(metrics::<S, H>))
        .route("/healthz", get(healthz::<S, H>))
        .route("/status", get(status_page::<S, F, H>))
        .with_state(pages);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin listener ended");
        }
    });
    tracing::info!(%address, "admin pages");
    Ok(AdminServer { address, task })
}

async fn metrics<S, H>(State(pages): State<Arc<Pages<S, H>>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz<S, H: Fn() -> Health>(State(pages): State<Arc<Pages<S, H>>>) -> Response {
    match (pages.health)() {
        Health::Healthy => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Health::Unhealthy(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

async fn status_page<S, F, H>(
    State(pages): State<Arc<Pages<S, H>>>,
    RawQuery(query): RawQuery,
) -> Response
where
    S: Fn(Option<String>) -> F,
    F: Future<Output = serde_json::Value>,
{
    Json((pages.status)(query).await).into_response()
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn page(address: SocketAddr, path: &str) -> String {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn server(health: Health) -> AdminServer {
        let mut registry = Registry::default();
        let counter = <Counter>::default();
        registry.register("sipcast_example", "An example", counter.clone());
        counter.inc_by(7);
        let listen = "127.0.0.1:0".parse().unwrap();
        let status = |query| ready(serde_json::json!({ "mark": 1, "query": query }));
        serve(listen, Arc::new(registry), status, move || health.clone())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_three_pages_answer_in_their_formats() {
        let server = server(Health::Healthy).await;
        let metrics = page(server.address(), "/metrics").await;
        assert!(metrics.contains("application/openmetrics-text; version=1.0.0"));
        assert!(metrics.contains("sipcast_example_total 7"));
        assert!(metrics.ends_with("# EOF\n"));
        let health = page(server.address(), "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200"));
        let status = page(server.address(), "/status").await;
        assert!(status.contains("application/json"));
        assert!(status.ends_with("{\"mark\":1,\"query\":null}"));
        let status = page(server.address(), "/status?user=a@b.c").await;
        assert!(status.ends_with("{\"mark\":1,\"query\":\"user=a@b.c\"}"));
    }

    #[tokio::test]
    async fn an_unhealthy_program_answers_503_with_the_reason() {
        let server = server(Health::Unhealthy("no concentrator".to_owned())).await;
        let health = page(server.address(), "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 503"));
        assert!(health.ends_with("no concentrator\n"));
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_the_address_and_the_key() {
        let first = server(Health::Healthy).await;
        let second = serve(
            first.address(),
            Arc::new(Registry::default()),
            |_| ready(serde_json::Value::Null),
            || Health::Healthy,
        );
        let error = second.await.unwrap_err().to_string();
        assert!(error.contains(&first.address().to_string()), "{error}");
        assert!(error.contains("[admin]"), "{error}");
    }
}
