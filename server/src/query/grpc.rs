//! The Query service: translates between messages and the engine.

use everflame_profile::{DiffTable, FlameNode, TopTable};
use everflame_proto::v1::{self, query_server};
use tonic::{Code, Request, Response, Status};

use super::{
    engine::{Engine, Selection},
    error::{Fault, QueryError},
    selector::Selector,
};
use crate::{
    causes::with_causes,
    store::{Filter, SeriesExtent, TimeRange},
};

/// Protobuf decoders refuse messages that are nested deeper than 100; the
/// response itself is one level.
const MAX_FLAME_DEPTH: usize = 96;

/// The gRPC side of [`Engine`].
pub struct QueryService {
    engine: Engine,
}

impl QueryService {
    /// A service that asks this engine.
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl query_server::Query for QueryService {
    async fn kinds(
        &self,
        request: Request<v1::KindsRequest>,
    ) -> Result<Response<v1::KindsResponse>, Status> {
        let range = range(request.into_inner().range).map_err(|err| status(&err))?;
        let kinds = self.engine.kinds(range).await.map_err(|err| status(&err))?;
        let kinds = kinds.iter().map(|kind| kind.name().to_owned()).collect();
        Ok(Response::new(v1::KindsResponse { kinds }))
    }

    async fn label_names(
        &self,
        request: Request<v1::LabelNamesRequest>,
    ) -> Result<Response<v1::LabelNamesResponse>, Status> {
        let selection = selection(request.into_inner().selection)?;
        let names = self.engine.label_names(selection.filter).await.map_err(|err| status(&err))?;
        Ok(Response::new(v1::LabelNamesResponse { names }))
    }

    async fn label_values(
        &self,
        request: Request<v1::LabelValuesRequest>,
    ) -> Result<Response<v1::LabelValuesResponse>, Status> {
        let request = request.into_inner();
        let selection = selection(request.selection)?;
        let values = self.engine.label_values(selection.filter, request.name).await;
        let values = values.map_err(|err| status(&err))?;
        Ok(Response::new(v1::LabelValuesResponse { values }))
    }

    async fn series(
        &self,
        request: Request<v1::SeriesRequest>,
    ) -> Result<Response<v1::SeriesResponse>, Status> {
        let selection = selection(request.into_inner().selection)?;
        let series = self.engine.series(selection.filter).await.map_err(|err| status(&err))?;
        let series = series.into_iter().map(series_message).collect();
        Ok(Response::new(v1::SeriesResponse { series }))
    }

    async fn merge_pprof(
        &self,
        request: Request<v1::MergeRequest>,
    ) -> Result<Response<v1::MergePprofResponse>, Status> {
        let selection = selection(request.into_inner().selection)?;
        let pprof_gz = self.engine.merge_pprof(selection).await.map_err(|err| status(&err))?;
        Ok(Response::new(v1::MergePprofResponse { pprof_gz }))
    }

    async fn merge_flame(
        &self,
        request: Request<v1::MergeRequest>,
    ) -> Result<Response<v1::MergeFlameResponse>, Status> {
        let selection = selection(request.into_inner().selection)?;
        let tree = self.engine.merge_flame(selection).await.map_err(|err| status(&err))?;
        Ok(Response::new(v1::MergeFlameResponse {
            sample_type: tree.sample_type,
            unit: tree.unit,
            root: Some(flame_message(tree.root, MAX_FLAME_DEPTH)),
        }))
    }

    async fn top(
        &self,
        request: Request<v1::TopRequest>,
    ) -> Result<Response<v1::TopResponse>, Status> {
        let request = request.into_inner();
        let selection = selection(request.selection)?;
        let table = self.engine.top(selection, request.limit as usize).await;
        Ok(Response::new(top_message(table.map_err(|err| status(&err))?)))
    }

    async fn diff(
        &self,
        request: Request<v1::DiffRequest>,
    ) -> Result<Response<v1::DiffResponse>, Status> {
        let request = request.into_inner();
        let (base, compare) = (selection(request.base)?, selection(request.compare)?);
        let table = self.engine.diff(base, compare, request.limit as usize).await;
        Ok(Response::new(diff_message(table.map_err(|err| status(&err))?)))
    }
}

fn selection(message: Option<v1::Selection>) -> Result<Selection, Status> {
    let message = message.ok_or_else(|| Status::invalid_argument("the selection is missing"))?;
    let parse = || {
        let selector: Selector = message.selector.parse()?;
        let filter = Filter { kind: message.kind.parse()?, selector, range: range(message.range)? };
        let sample_type = Some(message.sample_type).filter(|name| !name.is_empty());
        Ok(Selection { filter, sample_type })
    };
    parse().map_err(|err: QueryError| status(&err))
}

/// 0 leaves a side open.
pub(crate) fn range(message: Option<v1::TimeRange>) -> Result<TimeRange, QueryError> {
    let message = message.unwrap_or_default();
    let instant = |ns: i64| u64::try_from(ns).map_err(|_negative| QueryError::EmptyRange);
    let start_unix_ns = instant(message.start_unix_ns)?;
    let end_unix_ns = match instant(message.end_unix_ns)? {
        0 => u64::MAX,
        end => end,
    };
    if end_unix_ns < start_unix_ns {
        return Err(QueryError::EmptyRange);
    }
    Ok(TimeRange { start_unix_ns, end_unix_ns })
}

pub(crate) fn status(err: &QueryError) -> Status {
    let code = match (err.fault(), err) {
        (_, QueryError::Timeout { .. }) => Code::DeadlineExceeded,
        (Fault::Question, _) => Code::InvalidArgument,
        (Fault::Nothing, _) => Code::NotFound,
        (Fault::Cost, _) => Code::ResourceExhausted,
        (Fault::Busy, _) => Code::Unavailable,
        (Fault::Server, _) => Code::Internal,
    };
    if err.fault() == Fault::Server {
        tracing::error!(error = with_causes(err), "a query failed");
    }
    Status::new(code, with_causes(err))
}

fn series_message(extent: SeriesExtent) -> v1::Series {
    let signed = |ns| i64::try_from(ns).unwrap_or(i64::MAX);
    let labels = extent.series.labels.iter();
    let labels = labels.map(|(name, value)| v1::Label { name: name.clone(), value: value.clone() });
    v1::Series {
        kind: extent.series.kind.name().to_owned(),
        labels: labels.collect(),
        first_unix_ns: signed(extent.first_unix_ns),
        last_unix_ns: signed(extent.last_unix_ns),
        profiles: extent.profiles,
    }
}

/// Frames below `depth` levels become part of one last frame, so that values still add up.
fn flame_message(node: FlameNode, depth: usize) -> v1::FlameNode {
    let deeper: i64 =
        node.children.iter().map(|child| child.total_value).fold(0, i64::saturating_add);
    let children = if node.children.is_empty() {
        Vec::new()
    } else if depth <= 1 {
        vec![v1::FlameNode {
            name: everflame_profile::flame::DEEPER.to_owned(),
            self_value: deeper,
            total_value: deeper,
            children: Vec::new(),
        }]
    } else {
        node.children.into_iter().map(|child| flame_message(child, depth - 1)).collect()
    };
    v1::FlameNode {
        name: node.name,
        self_value: node.self_value,
        total_value: node.total_value,
        children,
    }
}

fn top_message(table: TopTable) -> v1::TopResponse {
    let functions = table.functions.into_iter().map(|function| v1::TopFunction {
        name: function.name,
        filename: function.filename,
        self_value: function.self_value,
        total_value: function.total_value,
    });
    v1::TopResponse {
        sample_type: table.sample_type,
        unit: table.unit,
        total_value: table.total_value,
        functions: functions.collect(),
    }
}

fn diff_message(table: DiffTable) -> v1::DiffResponse {
    let functions = table.functions.into_iter().map(|function| v1::DiffFunction {
        name: function.name,
        filename: function.filename,
        base_self: function.base_self,
        base_total: function.base_total,
        compare_self: function.compare_self,
        compare_total: function.compare_total,
    });
    v1::DiffResponse {
        sample_type: table.sample_type,
        unit: table.unit,
        base_total: table.base_total,
        compare_total: table.compare_total,
        base_seconds: table.base_seconds,
        compare_seconds: table.compare_seconds,
        functions: functions.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn chain(depth: usize) -> FlameNode {
        let mut node =
            FlameNode { name: "leaf".into(), self_value: 7, total_value: 7, children: vec![] };
        for level in (0..depth).rev() {
            node = FlameNode {
                name: format!("f{level}"),
                self_value: 0,
                total_value: 7,
                children: vec![node],
            };
        }
        node
    }

    #[test]
    fn deep_trees_can_be_decoded_and_still_add_up() {
        let message = v1::MergeFlameResponse {
            root: Some(flame_message(chain(500), MAX_FLAME_DEPTH)),
            ..Default::default()
        };
        let decoded = v1::MergeFlameResponse::decode(message.encode_to_vec().as_slice()).unwrap();
        let mut node = decoded.root.unwrap();
        while let Some(child) = node.children.pop() {
            assert_eq!(child.total_value, 7);
            node = child;
        }
        assert_eq!((node.name.as_str(), node.self_value), ("[deeper frames]", 7));
    }

    #[test]
    fn shallow_trees_stay_as_they_are() {
        let message = flame_message(chain(3), MAX_FLAME_DEPTH);
        assert_eq!(message.children[0].children[0].children[0].name, "leaf");
    }

    #[test]
    fn open_ranges_have_no_end() {
        let all = range(None).unwrap();
        assert_eq!((all.start_unix_ns, all.end_unix_ns), (0, u64::MAX));
        let inverted = v1::TimeRange { start_unix_ns: 2, end_unix_ns: 1 };
        assert!(range(Some(inverted)).is_err());
    }
}
