//! What a person sees who opens the collector in a browser.

use axum::response::Html;

const INDEX: &str = include_str!("index.html");

pub(super) async fn index() -> Html<&'static str> {
    Html(INDEX)
}
