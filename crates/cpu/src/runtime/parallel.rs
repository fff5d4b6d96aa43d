//! Threads: a job is a number of tasks, which the calling thread and the workers take one by one.
//!
//! A worker is any thread that entered [`work`]: a Worker on wasm32, where the standard library can't start
//! threads, and an ordinary thread in native tests. A job doesn't wait for late workers: it closes as soon as
//! no task is left, and waits only for the workers inside. More threads than cores therefore cost little, and a
//! worker that ends while idle doesn't block anything.
//!
//! Kernels split rows and columns, never a sum: results are bit-identical for every number of threads.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Number of times a thread polls before it sleeps: about 20 µs, the time the host takes between most ops.
/// Waking a thread costs more.
const SPINS: u32 = 1 << 14;
/// The same if each thread has its own core, so that spinning holds up no other thread: about 300 µs.
const PATIENT_SPINS: u32 = 1 << 18;
/// Minimum number of multiply-adds for which waking other threads pays off: about 20 µs.
const WORTH_SHARING: usize = 1 << 19;
/// Maximum time in seconds to wait for a worker to finish its task before it counts as lost.
const PATIENCE: u32 = 120;
/// The bit of [`Pool::state`] that lets workers in; the lower bits count the workers inside.
const OPEN: u32 = 1 << 31;

/// One task of a job.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    /// The task's index in the job.
    pub index: usize,
    /// The index of the thread that runs it among the job's threads, to select its scratch memory.
    pub thread: usize,
}

/// The number of threads for a job of `multiply_adds`: 1 if the job is small.
pub(crate) fn threads_for(multiply_adds: usize) -> usize {
    if multiply_adds < WORTH_SHARING {
        1
    } else {
        1 + POOL.workers.load(SeqCst)
    }
}

/// The number of tasks to divide a job into: `each` per thread to balance the load, or one if there is a single
/// thread.
pub(crate) fn tasks_for(threads: usize, each: usize) -> usize {
    if threads == 1 { 1 } else { each * threads }
}

/// Runs tasks 0 to `count` on at most `threads` threads, in any order, and returns when all are done.
pub(crate) fn for_each_task(threads: usize, count: usize, task: &(dyn Fn(Task) + Sync)) {
    // If another job is running, the caller runs its tasks alone. That job may be another thread's, or the one
    // this call is nested in.
    if threads > 1 && count > 1 && !POOL.busy.swap(true, SeqCst) {
        POOL.run(threads, count, task);
    } else {
        for index in 0..count {
            task(Task { index, thread: 0 });
        }
    }
}

/// Runs the tasks of `first` and then those of `second` as one job. A thread that finds no more of the first
/// waits only for those still running, whereas two jobs would wake sleeping threads twice.
pub(crate) fn for_each_task_in_turn(
    threads: usize,
    first: (usize, &(dyn Fn(Task) + Sync)),
    second: (usize, &(dyn Fn(Task) + Sync)),
) {
    let done = AtomicUsize::new(0);
    for_each_task(threads, first.0 + second.0, &|task| {
        if task.index < first.0 {
            first.1(task);
            if done.fetch_add(1, SeqCst) + 1 == first.0 {
                POOL.wake(&POOL.left);
            }
        } else {
            // This can't deadlock: tasks are taken in order, so every task of the first has been taken by a
            // thread.
            POOL.wait_until(&|| done.load(SeqCst) == first.0);
            second.1(Task {
                index: task.index - first.0,
                ..task
            });
        }
    });
}

/// Lends the calling thread to the pool until [`dismiss`].
pub fn work() {
    Worker::join().work(None);
}

/// A thread's membership in the pool.
pub struct Worker {
    /// Its index among the threads of a job.
    thread: usize,
    /// The pool's dismissals when it joined.
    dismissals: u32,
    /// The last epoch that it saw.
    seen: u32,
}

impl Worker {
    /// Makes the calling thread a worker.
    pub fn join() -> Self {
        // The order matters: once `workers` counts this worker, it is guaranteed to see the next job and the
        // next dismissal.
        let dismissals = POOL.dismissals.load(SeqCst);
        let seen = POOL.epoch.load(SeqCst);
        let thread = 1 + POOL.workers.fetch_add(1, SeqCst);
        Self {
            thread,
            dismissals,
            seen,
        }
    }

    /// Lends the calling thread to the pool until [`dismiss`], then returns `None`. If `patience` is given and
    /// no job comes for that time, it returns the last value of [`epoch`] instead. The thread then may wait for
    /// another value elsewhere, and must come back. Jobs don't wait for it.
    pub fn work(&mut self, patience: Option<Duration>) -> Option<u32> {
        while POOL.dismissals.load(SeqCst) == self.dismissals {
            match POOL.wait_for_job(self.seen, patience) {
                Some(epoch) => self.seen = epoch,
                None => return Some(self.seen),
            }
            POOL.help(self.thread);
        }
        None
    }
}

/// The value that changes with each job and each dismissal.
pub fn epoch() -> &'static AtomicU32 {
    &POOL.epoch
}

/// Sets whether each thread has its own core, so that it may spin longer before it sleeps.
pub fn set_thread_per_core(enabled: bool) {
    POOL.spins
        .store(if enabled { PATIENT_SPINS } else { SPINS }, SeqCst);
}

/// Dismisses the workers: [`work`] returns in each of them once its current task is done.
pub fn dismiss() {
    POOL.dismissals.fetch_add(1, SeqCst);
    POOL.epoch.fetch_add(1, SeqCst);
    POOL.wake(&POOL.came);
}

/// Reports that a worker was lost inside a task: the thread that waits for it panics instead of waiting
/// forever.
pub fn mark_worker_lost() {
    POOL.lost.store(true, SeqCst);
    POOL.left.notify_all();
}

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(Task) + Sync),
    count: usize,
    threads: usize,
}

struct Pool {
    /// Number of threads that have entered [`work`].
    workers: AtomicUsize,
    /// Whether a job is running.
    busy: AtomicBool,
    /// Written while no worker is inside, read by the workers inside.
    job: UnsafeCell<Option<Job>>,
    /// [`OPEN`] while there are tasks, plus the number of workers inside.
    state: AtomicU32,
    /// Index of the next task.
    next: AtomicUsize,
    /// Incremented for each job; idle workers watch it.
    epoch: AtomicU32,
    sleepers: AtomicU32,
    lost: AtomicBool,
    spins: AtomicU32,
    /// Number of times all workers have been dismissed.
    dismissals: AtomicU32,
    lock: Mutex<()>,
    /// Notifies workers of a new job.
    came: Condvar,
    /// Notifies waiting threads that the last worker left or that the last of the first tasks is done.
    left: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `busy`, while no worker is inside.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool {
    workers: AtomicUsize::new(0),
    busy: AtomicBool::new(false),
    job: UnsafeCell::new(None),
    state: AtomicU32::new(0),
    next: AtomicUsize::new(0),
    epoch: AtomicU32::new(0),
    sleepers: AtomicU32::new(0),
    lost: AtomicBool::new(false),
    spins: AtomicU32::new(SPINS),
    dismissals: AtomicU32::new(0),
    lock: Mutex::new(()),
    came: Condvar::new(),
    left: Condvar::new(),
};

impl Pool {
    /// The caller must hold `busy`.
    fn run(&self, threads: usize, count: usize, task: &(dyn Fn(Task) + Sync)) {
        // SAFETY: only the lifetime changes; `Closing` ensures that no worker uses the task after this call.
        let task: &'static (dyn Fn(Task) + Sync) = unsafe { std::mem::transmute(task) };
        let job = Job {
            task,
            count,
            threads,
        };
        // SAFETY: the state is 0, so no worker is inside.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, SeqCst);
        self.state.store(OPEN, SeqCst);
        let closing = Closing(self);
        self.epoch.fetch_add(1, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            self.wake(&self.came);
        }
        self.take_tasks(job, 0);
        drop(closing);
    }

    fn take_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the closure lives until `Closing` has seen every worker leave.
        let task = unsafe { &*job.task };
        loop {
            let index = self.next.fetch_add(1, SeqCst);
            if index >= job.count {
                break;
            }
            task(Task { index, thread });
        }
    }

    /// Waits for the epoch to change and returns it; `None` if it doesn't change within `patience`.
    fn wait_for_job(&self, seen: u32, patience: Option<Duration>) -> Option<u32> {
        for _ in 0..self.spins.load(SeqCst) {
            let epoch = self.epoch.load(SeqCst);
            if epoch != seen {
                return Some(epoch);
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock();
        self.sleepers.fetch_add(1, SeqCst);
        while self.epoch.load(SeqCst) == seen {
            let Some(time) = patience else {
                let waited = self.came.wait(guard);
                guard = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Once only: wasm32 has no clock to count the time after a wake-up without a job.
            drop(self.came.wait_timeout(guard, time));
            break;
        }
        self.sleepers.fetch_sub(1, SeqCst);
        let epoch = self.epoch.load(SeqCst);
        (epoch != seen).then_some(epoch)
    }

    fn help(&self, thread: usize) {
        let enter = |state: u32| (state & OPEN != 0).then_some(state + 1);
        if self.state.fetch_update(SeqCst, SeqCst, enter).is_err() {
            return;
        }
        let leaving = Leaving(self);
        // SAFETY: the job isn't written while a worker is inside.
        if let Some(job) = unsafe { *self.job.get() }
            && thread < job.threads
        {
            self.take_tasks(job, thread);
        }
        drop(leaving);
    }

    /// Waits until `done` returns true.
    ///
    /// # Panics
    /// If a worker was lost or takes longer than [`PATIENCE`].
    fn wait_until(&self, done: &dyn Fn() -> bool) {
        for _ in 0..self.spins.load(SeqCst) {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock();
        for _ in 0..PATIENCE {
            if done() {
                return;
            }
            if self.lost.load(SeqCst) {
                break;
            }
            let waited = self.left.wait_timeout(guard, Duration::from_secs(1));
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(guard);
        panic!("One of the engine's threads was lost while it was working.");
    }

    /// Wakes the threads that wait. Acquiring the lock ensures that none is between its last check and its sleep,
    /// where it would miss the notification.
    fn wake(&self, condition: &Condvar) {
        drop(self.lock());
        condition.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a job, even if a task panics: no worker may still use what the job borrowed.
struct Closing<'a>(&'a Pool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, SeqCst);
        self.0.wait_until(&|| self.0.state.load(SeqCst) == 0);
        self.0.busy.store(false, SeqCst);
    }
}

/// Marks a worker as having left, even if its task panics.
struct Leaving<'a>(&'a Pool);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, SeqCst) == 1 {
            self.0.wake(&self.0.left);
        }
    }
}

/// A slice that the threads of a job write, each its own elements.
pub(crate) struct DisjointSliceMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: callers of `get` guarantee that no two threads hold the same element.
unsafe impl<T: Send> Sync for DisjointSliceMut<'_, T> {}

impl<'a, T> DisjointSliceMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `count` elements, starting at `first`.
    ///
    /// # Panics
    /// If there are fewer.
    ///
    /// # Safety
    /// No other live slice may contain any of them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the callers share the elements out")]
    pub unsafe fn get(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first <= self.len && count <= self.len - first);
        // SAFETY: inside the slice; the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }

    /// `count` elements, starting at `first`, to read.
    ///
    /// # Panics
    /// If there are fewer.
    ///
    /// # Safety
    /// No live slice from [`DisjointSliceMut::get`] may contain any of them.
    #[inline(always)]
    pub unsafe fn read(&self, first: usize, count: usize) -> &[T] {
        assert!(first <= self.len && count <= self.len - first);
        // SAFETY: inside the slice; the caller guarantees that no thread writes it.
        unsafe { std::slice::from_raw_parts(self.start.add(first), count) }
    }

    /// Rows that start `stride` elements apart, the first one at `first`.
    ///
    /// # Safety
    /// The elements that the holder accesses must not be in any other live rows or slice.
    pub unsafe fn rows(&self, first: usize, stride: usize) -> Rows<'_, T> {
        assert!(first <= self.len);
        Rows {
            // SAFETY: not beyond the end of the slice.
            start: unsafe { self.start.add(first) },
            len: self.len - first,
            stride,
            slice: PhantomData,
        }
    }
}

/// Rows of a matrix; the holder has exclusive access to some of their columns.
pub(crate) struct Rows<'a, T> {
    start: *mut T,
    len: usize,
    stride: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<'a, T> Rows<'a, T> {
    pub fn new(slice: &'a mut [T], stride: usize) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            stride,
            slice: PhantomData,
        }
    }

    /// The first `columns` elements of a row.
    ///
    /// # Panics
    /// If the slice ends earlier.
    #[inline(always)]
    pub fn row(&mut self, row: usize, columns: usize) -> &mut [T] {
        let first = row * self.stride;
        assert!(first <= self.len && columns <= self.len - first);
        // SAFETY: inside the slice; whoever created these rows guaranteed exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), columns) }
    }

    /// The first `columns` elements of each of `count` rows.
    pub fn each(&mut self, count: usize, columns: usize) -> impl Iterator<Item = &mut [T]> {
        assert!(columns <= self.stride);
        let (start, len, stride) = (self.start, self.len, self.stride);
        (0..count).map(move |row| {
            assert!(row * stride <= len && columns <= len - row * stride);
            // SAFETY: inside the slice; the rows don't overlap, and this borrows them all.
            unsafe { std::slice::from_raw_parts_mut(start.add(row * stride), columns) }
        })
    }

    /// The rows starting at `row`.
    pub fn skip(&mut self, row: usize) -> Rows<'_, T> {
        self.shift(row * self.stride)
    }

    /// The same rows without their first `first` elements.
    pub fn shift(&mut self, first: usize) -> Rows<'_, T> {
        assert!(first <= self.len);
        Rows {
            // SAFETY: not beyond the end of the slice.
            start: unsafe { self.start.add(first) },
            len: self.len - first,
            stride: self.stride,
            slice: PhantomData,
        }
    }
}

/// Calls `run(first row, rows)` on blocks of whole rows of `values`, in parallel; `multiply_adds` is the total
/// work.
pub(crate) fn for_each_block_of_rows(
    values: &mut [f32],
    columns: usize,
    multiply_adds: usize,
    run: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let rows = values.len() / columns;
    let threads = threads_for(multiply_adds);
    let block = rows.div_ceil(tasks_for(threads, 4)).max(1);
    let parts = DisjointSliceMut::new(values);
    for_each_task(threads, rows.div_ceil(block), &|task| {
        let first = task.index * block;
        let count = block.min(rows - first);
        // SAFETY: each task has its own rows.
        run(first, unsafe {
            parts.get(first * columns, count * columns)
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::start_workers;
    use std::time::Instant;

    fn count_tasks(threads: usize, count: usize) -> Vec<u32> {
        let counts: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
        for_each_task(threads, count, &|task| {
            assert!(task.thread < threads);
            counts[task.index].fetch_add(1, SeqCst);
        });
        counts.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        set_thread_per_core(true);
        start_workers(3);
        for round in 0..2000 {
            let count = round % 23;
            assert_eq!(count_tasks(1 + round % 4, count), vec![1; count]);
        }
    }

    #[test]
    fn second_tasks_come_after_the_first() {
        start_workers(3);
        for round in 0..2000 {
            let (first, second) = (round % 7, round % 11);
            let (done, after) = (AtomicU32::new(0), AtomicU32::new(0));
            for_each_task_in_turn(
                1 + round % 4,
                (first, &|_| {
                    if round % 100 == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    done.fetch_add(1, SeqCst);
                }),
                (second, &|task| {
                    assert!(task.index < second && done.load(SeqCst) as usize == first);
                    after.fetch_add(1, SeqCst);
                }),
            );
            assert_eq!(done.into_inner() as usize, first);
            assert_eq!(after.into_inner() as usize, second);
        }
    }

    #[test]
    fn workers_that_slept_are_woken() {
        start_workers(2);
        for _ in 0..5 {
            while POOL.sleepers.load(SeqCst) < 2 {
                std::thread::yield_now();
            }
            let helped = AtomicBool::new(false);
            let given_up = Instant::now() + Duration::from_secs(60);
            for_each_task(3, 2, &|task| {
                if task.thread > 0 {
                    helped.store(true, SeqCst);
                }
                // Only a worker that was woken can take the other task.
                while !helped.load(SeqCst) {
                    assert!(Instant::now() < given_up, "no worker was woken");
                    std::thread::yield_now();
                }
            });
        }
    }

    /// Calls `wake` in another thread while this one holds the lock, as a thread does that is about to sleep, and
    /// then sleeps: the notification must come after that.
    fn wakes_a_thread_about_to_sleep(condition: &Condvar, wake: fn()) {
        let guard = POOL.lock();
        let started = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                started.store(true, SeqCst);
                wake();
            });
            while !started.load(SeqCst) {
                std::thread::yield_now();
            }
            // Time in which a notification without the lock would be sent, and lost.
            std::thread::sleep(Duration::from_millis(50));
            let (_guard, waited) = condition
                .wait_timeout(guard, Duration::from_secs(60))
                .unwrap_or_else(PoisonError::into_inner);
            assert!(!waited.timed_out(), "the notification was lost");
        });
    }

    #[test]
    fn a_thread_about_to_sleep_is_woken() {
        wakes_a_thread_about_to_sleep(&POOL.left, || POOL.wake(&POOL.left));
        wakes_a_thread_about_to_sleep(&POOL.came, dismiss);
    }

    #[test]
    fn a_thread_that_waits_for_the_last_worker_is_woken() {
        start_workers(1);
        // Without a notification, the wait ends at its timeout of a second. One of the rounds is faster even on a
        // machine that has more to do than it can.
        let is_woken = (0..20).any(|_| {
            let start = Instant::now();
            for_each_task(2, 2, &|task| {
                if task.thread == 0 {
                    // Wait until the worker has the other task; otherwise this thread would run it.
                    while POOL.next.load(SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                } else {
                    // The other thread stops spinning meanwhile, and sleeps.
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            start.elapsed() < Duration::from_millis(900)
        });
        assert!(is_woken, "only the timeout ends the wait");
    }

    /// Passes the parts of ten elements to `take`, which must not take any beyond them.
    fn with_ten(take: impl FnOnce(&DisjointSliceMut<'_, u8>)) {
        take(&DisjointSliceMut::new(&mut [0; 10]));
    }

    #[test]
    #[should_panic(expected = "first <= self.len")]
    fn elements_beyond_the_end_are_not_written() {
        // SAFETY: nothing else refers to the elements.
        with_ten(|ten| assert!(unsafe { ten.get(1, 10) }.is_empty()));
    }

    #[test]
    #[should_panic(expected = "first <= self.len")]
    fn elements_from_beyond_the_end_are_not_written() {
        // SAFETY: nothing else refers to the elements.
        with_ten(|ten| assert!(unsafe { ten.get(11, 0) }.is_empty()));
    }

    #[test]
    #[should_panic(expected = "first <= self.len")]
    fn elements_beyond_the_end_are_not_read() {
        // SAFETY: nothing writes the elements.
        with_ten(|ten| assert!(unsafe { ten.read(10, 1) }.is_empty()));
    }

    #[test]
    #[should_panic(expected = "first <= self.len")]
    fn rows_start_inside() {
        // SAFETY: nothing else refers to the elements.
        with_ten(|ten| assert!(unsafe { ten.rows(11, 2) }.len == 0));
    }

    #[test]
    #[should_panic(expected = "columns <= self.len")]
    fn a_row_ends_inside() {
        Rows::new(&mut [0; 10], 4).row(2, 3);
    }

    #[test]
    #[should_panic(expected = "columns <= len")]
    fn each_row_ends_inside() {
        Rows::new(&mut [0; 10], 4).each(3, 3).for_each(drop);
    }

    #[test]
    #[should_panic(expected = "first <= self.len")]
    fn rows_are_shifted_inside() {
        Rows::new(&mut [0; 10], 4).shift(11);
    }

    #[test]
    fn whole_slices_and_rows_are_inside() {
        // SAFETY: one slice at a time.
        with_ten(|ten| unsafe {
            assert_eq!(ten.get(0, 10).len(), 10);
            assert_eq!(ten.get(10, 0).len(), 0);
            assert_eq!(ten.read(3, 7).len(), 7);
            assert_eq!(ten.rows(2, 4).each(2, 4).count(), 2);
        });
    }

    #[test]
    fn idle_workers_may_wait_elsewhere() {
        let absences = std::sync::Arc::new(AtomicU32::new(0));
        let count = absences.clone();
        let worker = std::thread::spawn(move || {
            let mut worker = Worker::join();
            while let Some(seen) = worker.work(Some(Duration::from_millis(1))) {
                count.fetch_add(1, SeqCst);
                while epoch().load(SeqCst) == seen {
                    std::thread::yield_now();
                }
            }
        });
        for round in 1..=5 {
            while absences.load(SeqCst) < round {
                std::thread::yield_now();
            }
            let helped = AtomicBool::new(false);
            for_each_task(2, 2, &|task| {
                if task.thread > 0 {
                    helped.store(true, SeqCst);
                }
                // Only the worker that came back can take the other task.
                while !helped.load(SeqCst) {
                    std::thread::yield_now();
                }
            });
        }
        dismiss();
        worker.join().unwrap();
    }

    #[test]
    fn workers_leave_when_dismissed() {
        let workers: Vec<_> = (0..3).map(|_| std::thread::spawn(work)).collect();
        while POOL.workers.load(SeqCst) < 3 {
            std::thread::yield_now();
        }
        assert_eq!(count_tasks(4, 9), vec![1; 9]);
        dismiss();
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(count_tasks(4, 9), vec![1; 9]);
    }

    #[test]
    fn a_task_may_have_tasks() {
        start_workers(2);
        let total = AtomicU32::new(0);
        for_each_task(3, 8, &|_| {
            for_each_task(3, 8, &|_| {
                total.fetch_add(1, SeqCst);
            });
        });
        assert_eq!(total.into_inner(), 64);
    }

    #[test]
    fn a_worker_lost_inside_a_task_is_not_waited_for() {
        start_workers(1);
        let result = std::panic::catch_unwind(|| {
            for_each_task(2, 2, &|task| {
                if task.thread == 0 {
                    // Wait until the worker has the other task; otherwise this thread would run it.
                    while POOL.next.load(SeqCst) < 2 {}
                } else {
                    mark_worker_lost();
                    std::thread::sleep(Duration::from_secs(20));
                }
            });
        });
        let message = *result.unwrap_err().downcast::<&str>().unwrap();
        assert!(message.contains("lost"));
    }

    #[test]
    fn rows_are_shared_out_whole() {
        start_workers(2);
        for rows in [0, 1, 5, 197] {
            let mut values = vec![0.0; rows * 3];
            for_each_block_of_rows(&mut values, 3, usize::MAX, &|first, block| {
                for (index, value) in block.iter_mut().enumerate() {
                    *value = (first * 3 + index) as f32;
                }
            });
            let expected: Vec<f32> = (0..rows * 3).map(|v| v as f32).collect();
            assert_eq!(values, expected);
        }
    }
}
