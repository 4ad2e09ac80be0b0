//! Programs that were asked for, or why they do not run.

use super::BpfError;

/// Programs of one kind of profile: not asked for, loaded, or refused.
pub(super) struct Wanted<T>(Option<Result<T, BpfError>>);

impl<T> Wanted<T> {
    /// Not asked for.
    pub(super) const fn not() -> Self {
        Self(None)
    }

    /// Asked for.
    pub(super) const fn of(loaded: Option<Result<T, BpfError>>) -> Self {
        Self(loaded)
    }

    /// This kernel does not let it be.
    pub(super) fn refuse(&mut self, reason: BpfError) {
        self.0 = Some(Err(reason));
    }

    /// If they are loaded.
    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_ref()?.as_ref().ok()
    }

    /// Why they are not, if they were asked for.
    pub(super) fn error(&self) -> Option<&BpfError> {
        self.0.as_ref()?.as_ref().err()
    }

    /// Has them started, if they are loaded.
    ///
    /// # Errors
    /// When they were asked for and cannot run, and `is_required`; otherwise [`Self::error`] has the reason.
    pub(super) fn start(
        &mut self,
        is_required: bool,
        start: impl FnOnce(&mut T) -> Result<(), BpfError>,
    ) -> Result<(), BpfError> {
        if let Some(Ok(loaded)) = &mut self.0
            && let Err(error) = start(loaded)
        {
            self.refuse(error);
        }
        match self.0.take() {
            Some(Err(error)) if is_required => Err(error),
            kept => {
                self.0 = kept;
                Ok(())
            }
        }
    }
}
