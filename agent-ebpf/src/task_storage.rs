//! A map with one value per task, which the kernel keeps at the task and frees with it
//! (`BPF_MAP_TYPE_TASK_STORAGE`, Linux 5.11): no key that is used again for another task, and
//! found in a third of the time that a hash map takes.

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE,
        task_struct,
    },
    helpers::generated::bpf_task_storage_get,
};

/// The definition that the loader reads from the types of its fields.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: its pointers stand for types only; nobody reads them.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// For a static with `#[btf_map]`.
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value of a task that has one.
    ///
    /// # Safety
    /// `task` comes from the kernel, which knows it for a task.
    #[inline(always)]
    pub unsafe fn get(&self, task: *mut task_struct) -> Option<*mut T> {
        // SAFETY: as the caller says.
        unsafe { self.storage(task, 0) }
    }

    /// The value of a task, of zeros if it had none. `None` without memory for it.
    ///
    /// # Safety
    /// As of [`Self::get`].
    #[inline(always)]
    pub unsafe fn get_or_create(&self, task: *mut task_struct) -> Option<*mut T> {
        // SAFETY: as the caller says.
        unsafe { self.storage(task, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE)) }
    }

    #[inline(always)]
    unsafe fn storage(&self, task: *mut task_struct, flags: u64) -> Option<*mut T> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the loader puts the map in the place of its definition.
        let value = unsafe { bpf_task_storage_get(map, task, ptr::null_mut(), flags) };
        if value.is_null() { None } else { Some(value.cast()) }
    }
}
