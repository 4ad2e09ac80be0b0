//! Decides what of a batch is taken.
//!
//! What passes here can be merged with everything else of its kind: it decodes,
//! it has the sample types of its kind, and its labels and times are in bounds.
//! One bad profile does not cost the sender the rest of its batch.

use std::time::Duration;

use everflame_profile::{DecodeError, DecodeLimits, Kind, UnknownKind, decode, encode_gz, pprof};
use everflame_proto::v1;
use prost::Message as _;

use super::labels::{self, LabelError};
use crate::{
    metrics::RejectReason,
    store::{BatchId, SeriesKey, ValidBatch, ValidProfile},
};

/// A clock may be ahead of ours by this much before we do not believe it.
const MAX_CLOCK_AHEAD: Duration = Duration::from_secs(600);
/// Windows are seconds long; a longer one than this is a mistake.
const MAX_WINDOW: Duration = Duration::from_secs(24 * 3_600);
/// One per process and kind; the acknowledgement may have to name all of them.
const MAX_PROFILES: usize = 1 << 16;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// How large a batch may be.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Of each profile.
    pub profile: DecodeLimits,
    /// Of all profiles of a batch, decompressed.
    pub max_decompressed_bytes: usize,
    /// Batches older than this would be deleted at once.
    pub retention: Duration,
}

/// What is left of a batch.
#[derive(Debug)]
pub struct Validated {
    /// The batch without the profiles that were refused.
    pub batch: ValidBatch,
    /// Where it came from.
    pub host: String,
    /// Set when the batch claims to be from the future and its window was moved to now.
    pub clock_ahead: Option<Duration>,
}

/// The result of validation.
#[derive(Debug)]
pub struct Checked {
    /// The batch, unless nothing of it can be taken.
    pub result: Result<Validated, BatchError>,
    /// Which of its profiles were refused, and why.
    pub rejected: Vec<Refused>,
}

/// A profile that is not taken.
#[derive(Debug)]
pub struct Refused {
    /// Its index in the batch.
    pub index: u32,
    /// Why.
    pub reason: ProfileError,
}

/// Why a whole batch is refused.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Not a batch id.
    #[error("the batch id has {bytes} bytes; it must have 16")]
    BatchId {
        /// How many it has.
        bytes: usize,
    },
    /// Not a host name.
    #[error("the host is empty")]
    NoHost,
    /// Not a label value.
    #[error("the host is not usable as a label")]
    Host {
        /// Why.
        #[source]
        source: LabelError,
    },
    /// Not a time window.
    #[error(
        "the window (start {start_unix_ns} ns, duration {duration_ns} ns) is before 1970, \
         negative or longer than a day"
    )]
    Window {
        /// As sent.
        start_unix_ns: i64,
        /// As sent.
        duration_ns: i64,
    },
    /// Older than what is kept.
    #[error(
        "the window ended {age_s} s ago, which is longer than profiles are kept ({retention_s} s); \
         is the sender's clock right?"
    )]
    TooOld {
        /// How long ago.
        age_s: u64,
        /// How long profiles are kept.
        retention_s: u64,
    },
    /// More than a host has processes.
    #[error("the batch has {profiles} profiles; at most {MAX_PROFILES} are taken")]
    TooManyProfiles {
        /// How many there are.
        profiles: usize,
    },
    /// Nothing to store.
    #[error("none of the {profiles} profiles of this batch can be taken")]
    NothingValid {
        /// How many there were.
        profiles: usize,
    },
}

/// Why a profile is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No such kind.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    /// Not labels of a series.
    #[error("bad labels")]
    Labels(#[from] LabelError),
    /// Not a profile, or too large.
    #[error("bad pprof")]
    Pprof(#[from] DecodeError),
    /// Would not add up with others of its kind.
    #[error("a {kind} profile has sample types {expected}, this one has {found}")]
    SampleTypes {
        /// The kind it claims to be.
        kind: Kind,
        /// Those of the kind.
        expected: String,
        /// Those of the profile.
        found: String,
    },
    /// The batch has used up what it may take.
    #[error("the profiles of this batch have more than {limit_bytes} bytes when decompressed")]
    BatchTooLarge {
        /// What is allowed.
        limit_bytes: usize,
    },
}

impl ProfileError {
    /// For the metrics.
    pub(crate) fn category(&self) -> RejectReason {
        match self {
            Self::Kind(_) => RejectReason::Kind,
            Self::Labels(_) => RejectReason::Labels,
            Self::SampleTypes { .. } => RejectReason::SampleTypes,
            Self::BatchTooLarge { .. }
            | Self::Pprof(
                DecodeError::CompressedTooLarge { .. }
                | DecodeError::DecompressedTooLarge { .. }
                | DecodeError::DecodedTooLarge { .. },
            ) => RejectReason::TooLarge,
            Self::Pprof(_) => RejectReason::Malformed,
        }
    }
}

/// Checks a batch that was received at `now_unix_ns`.
pub fn validate(batch: v1::Batch, limits: &BatchLimits, now_unix_ns: u64) -> Checked {
    let mut rejected = Vec::new();
    let result = check(batch, limits, now_unix_ns, &mut rejected);
    Checked { result, rejected }
}

fn check(
    batch: v1::Batch,
    limits: &BatchLimits,
    now_unix_ns: u64,
    rejected: &mut Vec<Refused>,
) -> Result<Validated, BatchError> {
    let id = BatchId::try_from(batch.batch_id.as_slice())
        .map_err(|_wrong_length| BatchError::BatchId { bytes: batch.batch_id.len() })?;
    if batch.host.is_empty() {
        return Err(BatchError::NoHost);
    }
    labels::check_value(labels::HOST, &batch.host).map_err(|source| BatchError::Host { source })?;
    let window = Window::of(&batch, limits.retention, now_unix_ns)?;
    let sent = batch.profiles.len();
    if sent > MAX_PROFILES {
        return Err(BatchError::TooManyProfiles { profiles: sent });
    }
    let mut left_bytes = limits.max_decompressed_bytes;
    let mut profiles = Vec::with_capacity(sent);
    for (index, record) in (0..).zip(batch.profiles) {
        match check_profile(record, &batch.host, window, limits, &mut left_bytes) {
            Ok(profile) => profiles.push(profile),
            Err(reason) => rejected.push(Refused { index, reason }),
        }
    }
    if profiles.is_empty() {
        return Err(BatchError::NothingValid { profiles: sent });
    }
    let batch_id = ValidBatch { id, profiles };
    Ok(Validated { batch: batch_id, host: batch.host, clock_ahead: window.clock_ahead })
}

#[derive(Debug, Clone, Copy)]
struct Window {
    start_unix_ns: u64,
    duration_ns: u64,
    clock_ahead: Option<Duration>,
}

impl Window {
    /// A window from the future is moved so that it ends now: its stacks are worth
    /// keeping, while its times are wrong anyway and would outlive the retention.
    fn of(batch: &v1::Batch, retention: Duration, now_unix_ns: u64) -> Result<Self, BatchError> {
        let wrong = || BatchError::Window {
            start_unix_ns: batch.start_unix_ns,
            duration_ns: batch.duration_ns,
        };
        let start_unix_ns = u64::try_from(batch.start_unix_ns).map_err(|_negative| wrong())?;
        let duration_ns = u64::try_from(batch.duration_ns).map_err(|_negative| wrong())?;
        if Duration::from_nanos(duration_ns) > MAX_WINDOW {
            return Err(wrong());
        }
        let end_unix_ns = start_unix_ns.checked_add(duration_ns).ok_or_else(wrong)?;
        let ahead = Duration::from_nanos(end_unix_ns.saturating_sub(now_unix_ns));
        if ahead > MAX_CLOCK_AHEAD {
            let start_unix_ns = now_unix_ns.saturating_sub(duration_ns);
            return Ok(Self { start_unix_ns, duration_ns, clock_ahead: Some(ahead) });
        }
        let age = Duration::from_nanos(now_unix_ns.saturating_sub(end_unix_ns));
        if age > retention {
            let (age_s, retention_s) = (age.as_secs(), retention.as_secs());
            return Err(BatchError::TooOld { age_s, retention_s });
        }
        Ok(Self { start_unix_ns, duration_ns, clock_ahead: None })
    }
}

fn check_profile(
    record: v1::ProfileRecord,
    host: &str,
    window: Window,
    limits: &BatchLimits,
    left_bytes: &mut usize,
) -> Result<ValidProfile, ProfileError> {
    let kind: Kind = record.kind.parse()?;
    let labels = labels::series_labels(record.labels, host)?;
    if *left_bytes == 0 {
        return Err(ProfileError::BatchTooLarge { limit_bytes: limits.max_decompressed_bytes });
    }
    let of_profile = limits.profile.max_decompressed_bytes;
    let profile_limits =
        DecodeLimits { max_decompressed_bytes: of_profile.min(*left_bytes), ..limits.profile };
    let decoded = match decode(&record.pprof_gz, &profile_limits) {
        Err(DecodeError::DecompressedTooLarge { .. }) if *left_bytes < of_profile => {
            *left_bytes = 0;
            return Err(ProfileError::BatchTooLarge { limit_bytes: limits.max_decompressed_bytes });
        }
        decoded => decoded?,
    };
    *left_bytes = left_bytes.saturating_sub(decoded.encoded_len());
    check_sample_types(kind, &decoded)?;
    let compressed = record.pprof_gz.starts_with(&GZIP_MAGIC);
    Ok(ValidProfile {
        series: SeriesKey { kind, labels },
        start_unix_ns: window.start_unix_ns,
        duration_ns: window.duration_ns,
        samples: decoded.sample.len() as u64,
        pprof_gz: if compressed { record.pprof_gz } else { encode_gz(&decoded).into() },
    })
}

fn check_sample_types(kind: Kind, profile: &pprof::Profile) -> Result<(), ProfileError> {
    let string = |index: i64| {
        let index = usize::try_from(index).ok();
        index.and_then(|index| profile.string_table.get(index)).map_or("", String::as_str)
    };
    let found: Vec<_> = profile
        .sample_type
        .iter()
        .map(|value| (string(value.r#type), string(value.unit)))
        .collect();
    if found == kind.sample_types() {
        return Ok(());
    }
    let show = |types: &[(&str, &str)]| {
        let types: Vec<_> = types.iter().map(|(name, unit)| format!("{name}/{unit}")).collect();
        types.join(", ")
    };
    Err(ProfileError::SampleTypes {
        kind,
        expected: show(kind.sample_types()),
        found: show(&found),
    })
}
