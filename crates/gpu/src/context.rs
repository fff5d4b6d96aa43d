//! The device: how it is opened, and how its faults become errors.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use vit_msn_tensor::{Error, Result};

/// The limits and features to request from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestedLimits {
    /// WebGPU's defaults, which every adapter supports, and no features. Every op runs within them.
    #[default]
    WebGpu,
    /// Everything the adapter supports: larger tensors, timestamp queries, float16 arithmetic and subgroups, where
    /// available.
    Adapter,
}

/// The features that kernels use if available.
const USED_FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// How to choose the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContextOptions {
    /// Whether to accept a software adapter. Default false: the engine's CPU kernels are faster.
    pub allow_software: bool,
    /// Default: WebGPU's.
    pub limits: RequestedLimits,
}

/// PCI vendors whose GPUs have few registers per invocation: Intel, Qualcomm and ARM.
const FEW_REGISTERS: [u32; 3] = [0x8086, 0x5143, 0x13b5];

/// The name of the variants of kernels with subgroups.
pub(crate) const SUBGROUPS: &str = "subgroups";

type ErrorFuture = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

/// The error scopes around some calls, one for each kind of error.
struct Scopes {
    pending: Vec<ErrorFuture>,
    error: Option<wgpu::Error>,
}

impl Scopes {
    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Poll<Option<wgpu::Error>> {
        let error = &mut self.error;
        self.pending
            .retain_mut(|scope| match scope.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(None) => false,
                Poll::Ready(Some(reported)) => {
                    // Calls with a buffer that memory was too short for are invalid, too.
                    let explains = matches!(reported, wgpu::Error::OutOfMemory { .. });
                    if explains || error.is_none() {
                        *error = Some(reported);
                    }
                    false
                }
            });
        if self.pending.is_empty() {
            Poll::Ready(self.error.take())
        } else {
            Poll::Pending
        }
    }
}

/// Calls whose errors the device hasn't reported yet. Several callers may await the same one.
struct Unsettled {
    what: String,
    /// The label of the pipeline that the calls create.
    pipeline: Option<String>,
    outcome: RefCell<Outcome>,
    waiting: RefCell<Vec<Waker>>,
}

enum Outcome {
    Pending(Scopes),
    Known(Option<Error>),
}

impl Unsettled {
    fn poll(&self, context: &mut std::task::Context<'_>) -> Poll<Option<Error>> {
        let mut outcome = self.outcome.borrow_mut();
        let error = match &mut *outcome {
            Outcome::Known(error) => return Poll::Ready(error.clone()),
            // The device wakes the last task that polled, which wakes the others.
            Outcome::Pending(scopes) => match scopes.poll(context) {
                Poll::Ready(error) => error.map(|error| refusal(&self.what, error)),
                Poll::Pending => {
                    self.waiting.borrow_mut().push(context.waker().clone());
                    return Poll::Pending;
                }
            },
        };
        *outcome = Outcome::Known(error.clone());
        self.waiting.take().into_iter().for_each(Waker::wake);
        Poll::Ready(error)
    }

    fn is_known(&self) -> bool {
        matches!(*self.outcome.borrow(), Outcome::Known(_))
    }
}

/// A device and its faults.
pub struct Context {
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    /// The first unrecoverable fault: a lost device, or an error outside any error scope.
    fault: Arc<Mutex<Option<Error>>>,
    is_software: bool,
    has_subgroups: bool,
    has_packed_dot: bool,
    has_few_registers: bool,
    /// Variants of kernels that failed the self-test, by name.
    disabled: RefCell<Vec<String>>,
    /// Labels of pipelines that the driver refused.
    refused: RefCell<Vec<String>>,
    unsettled: RefCell<Vec<Rc<Unsettled>>>,
    /// The op being computed, for error messages.
    op: Cell<&'static str>,
    /// How often the device has run out of memory. Buffers from before the last time may be invalid.
    shortages: Cell<u64>,
}

impl Context {
    /// Opens the best adapter that the options allow.
    ///
    /// # Errors
    /// UNSUPPORTED if there is none, or if it refuses the limits.
    pub async fn new(options: ContextOptions) -> Result<Self> {
        let instance = wgpu::Instance::default();
        let adapter = instance
            .request_adapter(&wgpu::RequestAdapterOptions {
                power_preference: wgpu::PowerPreference::HighPerformance,
                ..Default::default()
            })
            .await
            .map_err(|error| no_adapter(&error.to_string()))?;
        let info = adapter.get_info();
        if info.device_type == wgpu::DeviceType::Cpu && !options.allow_software {
            return Err(no_adapter(&format!(
                "the only adapter{} is software on the CPU",
                called(&info.name)
            )));
        }
        let (required_limits, required_features) = match options.limits {
            RequestedLimits::WebGpu => (wgpu::Limits::defaults(), wgpu::Features::empty()),
            RequestedLimits::Adapter => (adapter.limits(), adapter.features() & USED_FEATURES),
        };
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("vit-msn"),
                required_limits,
                required_features,
                ..Default::default()
            })
            .await
            .map_err(|error| {
                Error::Unsupported(format!(
                    "The GPU{} can't provide a device with the requested limits: {error}.",
                    called(&info.name)
                ))
            })?;
        let mut context = Self::watch(device, queue, info);
        context.has_packed_dot = instance
            .wgsl_language_features()
            .contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct);
        Ok(context)
    }

    /// Takes over a device opened by the caller. From now on this context handles its faults.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let adapter = device.adapter_info();
        Self::watch(device, queue, adapter)
    }

    /// Records the device's faults for [`Context::check_alive`].
    fn watch(device: wgpu::Device, queue: wgpu::Queue, adapter: wgpu::AdapterInfo) -> Self {
        let fault = Arc::new(Mutex::new(None));
        let lost = Arc::clone(&fault);
        device.set_device_lost_callback(move |reason, message| {
            record_first(
                &lost,
                Error::EngineDead(format!(
                    "The GPU device was lost ({reason:?}: {message}): load the model again."
                )),
            );
        });
        let uncaptured = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |error| {
            record_first(
                &uncaptured,
                Error::EngineDead(format!(
                    "The GPU device failed between calls ({}): load the model again.",
                    refusal("a call", error)
                )),
            );
        }));
        Self {
            limits: device.limits(),
            is_software: is_software(&adapter),
            has_few_registers: FEW_REGISTERS.contains(&adapter.vendor),
            has_subgroups: device.features().contains(wgpu::Features::SUBGROUP),
            has_packed_dot: false,
            device,
            queue,
            adapter,
            fault,
            disabled: RefCell::default(),
            refused: RefCell::default(),
            unsettled: RefCell::default(),
            op: Cell::default(),
            shortages: Cell::default(),
        }
    }

    pub(crate) fn shortages(&self) -> u64 {
        self.shortages.get()
    }

    fn note(&self, error: &Error, pipeline: Option<&str>) {
        match (error, pipeline) {
            (Error::OutOfMemory(_), _) => self.shortages.set(self.shortages.get() + 1),
            (Error::Unsupported(_), Some(label)) => self.refuse(label),
            _ => {}
        }
    }

    /// Names the op that subsequent calls belong to, for memory errors.
    pub fn begin_op(&self, name: &'static str) {
        self.op.set(name);
    }

    /// " for" and the current op's name, or an empty string if it has none.
    pub(crate) fn for_op(&self) -> String {
        match self.op.get() {
            "" => String::new(),
            name => format!(" for {name}"),
        }
    }

    /// Lets kernels use subgroups. In browsers wgpu can't tell whether a device supports them; the code that opened
    /// it can.
    pub fn with_subgroups(mut self) -> Self {
        self.has_subgroups = true;
        self
    }

    /// Lets kernels use few registers per invocation. In browsers wgpu doesn't know an adapter's vendor; the code that
    /// opened it may.
    pub fn with_few_registers(mut self) -> Self {
        self.has_few_registers = true;
        self
    }

    /// Uses the GPU kernels even on software adapters, where they are slow. For tests.
    pub fn as_a_gpu(mut self) -> Self {
        self.is_software = false;
        self
    }

    /// The adapter: its name, backend and kind.
    pub fn adapter(&self) -> &wgpu::AdapterInfo {
        &self.adapter
    }

    /// Whether the adapter is known to be software on the CPU.
    pub fn is_software(&self) -> bool {
        self.is_software
    }

    /// Whether kernels may use subgroups.
    pub(crate) fn has_subgroups(&self) -> bool {
        self.has_subgroups && self.uses(SUBGROUPS)
    }

    /// Whether registers of an invocation that computes many results overflow to memory.
    pub(crate) fn has_few_registers(&self) -> bool {
        self.has_few_registers
    }

    /// Whether kernels may use dot products of four bytes.
    pub(crate) fn has_packed_dot(&self) -> bool {
        self.has_packed_dot
    }

    /// From now on, kernels don't use the variant of this name: see [`mod@crate::self_test`].
    pub fn disable(&self, variant: &str) {
        self.disabled.borrow_mut().push(variant.to_string());
    }

    /// Whether kernels may use the variant of this name.
    pub(crate) fn uses(&self, variant: impl fmt::Display) -> bool {
        let disabled = self.disabled.borrow();
        disabled.is_empty() || !disabled.contains(&variant.to_string())
    }

    /// Notes that the driver refuses the pipeline with this label. Ops then use another one, where they have one.
    pub fn refuse(&self, label: &str) {
        self.refused.borrow_mut().push(label.to_string());
    }

    pub(crate) fn refuses(&self, label: &str) -> bool {
        self.refused.borrow().iter().any(|other| other == label)
    }

    /// The device's limits, which are those requested.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// Simulates running out of memory.
    #[cfg(test)]
    pub(crate) fn run_short(&self) {
        self.shortages.set(self.shortages.get() + 1);
    }

    /// Lowers the binding size, so that small tensors exceed it.
    #[cfg(test)]
    pub(crate) fn lower_binding_size(&mut self, most: u64) {
        self.limits.max_storage_buffer_binding_size = most;
    }

    /// Whether the device has these features.
    pub(crate) fn has(&self, features: wgpu::Features) -> bool {
        self.device.features().contains(features)
    }

    /// Destroys the device; every later call returns an error.
    pub fn destroy(&self) {
        record_first(
            &self.fault,
            Error::Disposed("The GPU engine was disposed.".to_string()),
        );
        self.device.destroy();
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// # Errors
    /// The fault that ended the device, if any.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone().map_or(Ok(()), Err)
    }

    /// Makes device calls within error scopes; `what` names them in the error. Native errors are known immediately.
    /// In browsers they arrive later, and [`Context::settle`] returns them.
    ///
    /// # Errors
    /// OUT_OF_MEMORY, UNSUPPORTED if the device refuses the calls, ENGINE_DEAD if it is lost.
    pub(crate) fn checked<T>(&self, what: &str, calls: impl FnOnce() -> T) -> Result<T> {
        self.checked_for(None, what, calls)
    }

    /// [`Context::checked`] for calls that create the pipeline with this label, which is noted if it is refused.
    ///
    /// # Errors
    /// As [`Context::checked`].
    pub(crate) fn checked_pipeline<T>(
        &self,
        label: &str,
        what: &str,
        calls: impl FnOnce() -> T,
    ) -> Result<T> {
        self.checked_for(Some(label), what, calls)
    }

    fn checked_for<T>(
        &self,
        pipeline: Option<&str>,
        what: &str,
        calls: impl FnOnce() -> T,
    ) -> Result<T> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        self.check_alive()?;
        let scopes = [OutOfMemory, Internal, Validation].map(|f| self.device.push_error_scope(f));
        let value = calls();
        // Popped in reverse order.
        let pop = |scope: wgpu::ErrorScopeGuard| Box::pin(scope.pop()) as ErrorFuture;
        let mut scopes = Scopes {
            pending: scopes.into_iter().rev().map(pop).collect(),
            error: None,
        };
        match scopes.poll(&mut std::task::Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => {}
            Poll::Ready(Some(error)) => {
                let error = refusal(what, error);
                self.note(&error, pipeline);
                return Err(error);
            }
            Poll::Pending => self.unsettled.borrow_mut().push(Rc::new(Unsettled {
                what: what.to_string(),
                pipeline: pipeline.map(str::to_string),
                outcome: RefCell::new(Outcome::Pending(scopes)),
                waiting: RefCell::default(),
            })),
        }
        Ok(value)
    }

    /// Awaits the errors of all previous calls, including those that other callers await.
    ///
    /// # Errors
    /// The first of them.
    pub(crate) async fn settle(&self) -> Result<()> {
        let unsettled = self.unsettled.borrow().clone();
        let mut first = None;
        for calls in &unsettled {
            let error = poll_fn(|context| calls.poll(context)).await;
            let pipeline = calls.pipeline.as_deref();
            error.iter().for_each(|error| self.note(error, pipeline));
            first = first.or(error);
        }
        self.unsettled
            .borrow_mut()
            .retain(|calls| !calls.is_known());
        // The fault that ended the device explains any other failure.
        self.check_alive()?;
        first.map_or(Ok(()), Err)
    }

    /// Blocks until the device has finished all submitted work. Browsers need no polling.
    pub(crate) fn drive(&self) -> Result<()> {
        match self.device.poll(wgpu::PollType::wait_indefinitely()) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.check_alive()?;
                Err(Error::Unsupported(format!(
                    "Waiting for the GPU failed: {error}."
                )))
            }
        }
    }
}

fn is_software(adapter: &wgpu::AdapterInfo) -> bool {
    let name = adapter.name.to_lowercase();
    let known = ["swiftshader", "llvmpipe"];
    adapter.device_type == wgpu::DeviceType::Cpu || known.iter().any(|part| name.contains(part))
}

fn record_first(fault: &Mutex<Option<Error>>, error: Error) {
    let mut fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
    fault.get_or_insert(error);
}

/// Browsers may hide an adapter's name.
fn called(name: &str) -> String {
    match name {
        "" => String::new(),
        name => format!(" ({name})"),
    }
}

fn no_adapter(reason: &str) -> Error {
    Error::Unsupported(format!(
        "There is no GPU to compute on ({reason}): use device \"wasm\", or update the browser or the GPU's driver."
    ))
}

fn refusal(what: &str, error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory(format!(
            "The GPU's memory can't hold {what}: use a smaller batch or image, or dispose models that are no longer used."
        )),
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            Error::Unsupported(format!("The GPU refused {what}: {description}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::context;

    #[test]
    fn default_limits_are_webgpus() {
        let Some(context) = context() else { return };
        assert_eq!(context.limits().max_storage_buffers_per_shader_stage, 8);
        assert_eq!(context.limits().max_compute_workgroup_storage_size, 16384);
        assert!(!context.adapter().name.is_empty());
    }

    #[test]
    fn a_device_of_someone_elses_is_as_good() {
        let Some(context) = context() else { return };
        let (device, queue) = (context.device().clone(), context.queue().clone());
        let taken = Context::from_device(device, queue);
        assert_eq!(taken.adapter().name, context.adapter().name);
        assert_eq!(taken.is_software(), context.is_software());
        assert_eq!(taken.checked("a call", || 7), Ok(7));
    }

    #[test]
    fn software_is_refused_unless_asked_for() {
        let Some(context) = context() else { return };
        if context.adapter().device_type != wgpu::DeviceType::Cpu {
            return;
        }
        let error = pollster::block_on(Context::new(ContextOptions::default()))
            .err()
            .expect("a software adapter");
        assert_eq!(error.code(), "UNSUPPORTED");
        assert!(error.to_string().contains(&context.adapter().name));
    }

    #[test]
    fn the_adapters_limits_can_be_had() {
        let Some(small) = context() else { return };
        let large = pollster::block_on(Context::new(ContextOptions {
            allow_software: true,
            limits: RequestedLimits::Adapter,
        }))
        .unwrap();
        assert!(large.limits().max_buffer_size >= small.limits().max_buffer_size);
    }

    #[test]
    fn a_refused_call_is_named_and_the_device_goes_on() {
        let Some(context) = context() else { return };
        let buffer = |size| {
            context.checked("a test buffer", || {
                context.device().create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size,
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                })
            })
        };
        let error = buffer(context.limits().max_buffer_size + 4).unwrap_err();
        assert_eq!(error.code(), "UNSUPPORTED");
        assert!(error.to_string().contains("a test buffer"), "{error}");
        assert!(buffer(256).is_ok());
        assert_eq!(pollster::block_on(context.settle()), Ok(()));
    }

    /// A call whose error arrives later, when the test sends it.
    fn reported_later(
        context: &Context,
        pipeline: Option<&str>,
    ) -> futures_channel::oneshot::Sender<Option<wgpu::Error>> {
        let (sender, receiver) = futures_channel::oneshot::channel();
        let error: ErrorFuture = Box::pin(async { receiver.await.unwrap() });
        let scopes = Scopes {
            pending: vec![error],
            error: None,
        };
        context.unsettled.borrow_mut().push(Rc::new(Unsettled {
            what: "a tensor".to_string(),
            pipeline: pipeline.map(str::to_string),
            outcome: RefCell::new(Outcome::Pending(scopes)),
            waiting: RefCell::default(),
        }));
        sender
    }

    #[test]
    fn all_who_wait_hear_of_an_error_and_none_who_comes_later() {
        let Some(context) = context() else { return };
        let sender = reported_later(&context, None);
        let (mut first, mut second) = (Box::pin(context.settle()), Box::pin(context.settle()));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut task = std::task::Context::from_waker(&waker);
        assert!(first.as_mut().poll(&mut task).is_pending());
        assert!(
            second
                .as_mut()
                .poll(&mut std::task::Context::from_waker(Waker::noop()))
                .is_pending()
        );
        let source = Box::<dyn std::error::Error + Send + Sync>::from("full");
        sender
            .send(Some(wgpu::Error::OutOfMemory { source }))
            .unwrap();
        let code = |poll: Poll<Result<()>>| match poll {
            Poll::Ready(Err(error)) => error.code(),
            other => panic!("{other:?}"),
        };
        let mut second_task = std::task::Context::from_waker(Waker::noop());
        assert_eq!(
            code(second.as_mut().poll(&mut second_task)),
            "OUT_OF_MEMORY"
        );
        assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
        assert_eq!(code(first.as_mut().poll(&mut task)), "OUT_OF_MEMORY");
        assert!(context.shortages() > 0);
        assert_eq!(pollster::block_on(context.settle()), Ok(()));
    }

    #[test]
    fn a_shortage_of_memory_explains_the_calls_that_failed_because_of_it() {
        let source = || Box::<dyn std::error::Error + Send + Sync>::from("cause");
        let invalid = || wgpu::Error::Validation {
            source: source(),
            description: "an invalid buffer".to_string(),
        };
        let short = || wgpu::Error::OutOfMemory { source: source() };
        for (first, second) in [(invalid(), short()), (short(), invalid())] {
            let ready = |error| Box::pin(async { Some(error) }) as ErrorFuture;
            let mut scopes = Scopes {
                pending: vec![ready(first), ready(second)],
                error: None,
            };
            let found = scopes.poll(&mut std::task::Context::from_waker(Waker::noop()));
            assert!(matches!(
                found,
                Poll::Ready(Some(wgpu::Error::OutOfMemory { .. }))
            ));
        }
    }

    #[test]
    fn a_pipeline_that_is_refused_later_is_known_from_then_on() {
        let Some(context) = context() else { return };
        let sender = reported_later(&context, Some("linear 1"));
        let error = wgpu::Error::Internal {
            source: Box::<dyn std::error::Error + Send + Sync>::from("registers"),
            description: "too many registers".to_string(),
        };
        sender.send(Some(error)).unwrap();
        assert!(!context.refuses("linear 1"));
        let code = pollster::block_on(context.settle()).unwrap_err().code();
        assert_eq!(code, "UNSUPPORTED");
        assert!(context.refuses("linear 1") && !context.refuses("linear 2"));
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn an_error_outside_of_any_check_ends_the_device_without_a_panic() {
        let Some(context) = context() else { return };
        let _ = context
            .device()
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: None,
                source: wgpu::ShaderSource::Wgsl("nonsense".into()),
            });
        let error = context.check_alive().unwrap_err();
        assert_eq!(error.code(), "ENGINE_DEAD");
        assert!(error.to_string().contains("nonsense"), "{error}");
    }

    #[test]
    fn a_lost_device_says_so() {
        let Some(context) = context() else { return };
        // Bypasses the context, which then learns of it as it would of a driver reset.
        context.device().destroy();
        let _ = context.device().poll(wgpu::PollType::Poll);
        let error = context.checked("a call", || ()).unwrap_err();
        assert_eq!(error.code(), "ENGINE_DEAD");
        assert!(error.to_string().contains("lost"), "{error}");
    }
}
