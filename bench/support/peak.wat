;; What one core can do at most with plain SIMD128, to measure kernels against.
(module
  (memory (export "memory") 64)

  ;; Twelve independent chains of x·a + b, four lanes each: enough to hide the latency of both operations, and few
  ;; enough for the sixteen registers of x86-64. 96 floating-point operations an iteration.
  (func (export "multiply_add") (param $iterations i32) (result f32)
    (local $a v128) (local $b v128)
    (local $0 v128) (local $1 v128) (local $2 v128) (local $3 v128) (local $4 v128) (local $5 v128)
    (local $6 v128) (local $7 v128) (local $8 v128) (local $9 v128) (local $10 v128) (local $11 v128)
    (local.set $a (f32x4.splat (f32.const 0.5)))
    (local.set $b (f32x4.splat (f32.const 0.25)))
    (loop $again
      (local.set $0 (f32x4.add (f32x4.mul (local.get $0) (local.get $a)) (local.get $b)))
      (local.set $1 (f32x4.add (f32x4.mul (local.get $1) (local.get $a)) (local.get $b)))
      (local.set $2 (f32x4.add (f32x4.mul (local.get $2) (local.get $a)) (local.get $b)))
      (local.set $3 (f32x4.add (f32x4.mul (local.get $3) (local.get $a)) (local.get $b)))
      (local.set $4 (f32x4.add (f32x4.mul (local.get $4) (local.get $a)) (local.get $b)))
      (local.set $5 (f32x4.add (f32x4.mul (local.get $5) (local.get $a)) (local.get $b)))
      (local.set $6 (f32x4.add (f32x4.mul (local.get $6) (local.get $a)) (local.get $b)))
      (local.set $7 (f32x4.add (f32x4.mul (local.get $7) (local.get $a)) (local.get $b)))
      (local.set $8 (f32x4.add (f32x4.mul (local.get $8) (local.get $a)) (local.get $b)))
      (local.set $9 (f32x4.add (f32x4.mul (local.get $9) (local.get $a)) (local.get $b)))
      (local.set $10 (f32x4.add (f32x4.mul (local.get $10) (local.get $a)) (local.get $b)))
      (local.set $11 (f32x4.add (f32x4.mul (local.get $11) (local.get $a)) (local.get $b)))
      (br_if $again (local.tee $iterations (i32.sub (local.get $iterations) (i32.const 1)))))
    ;; All chains flow into the result, so that none is removed as dead.
    (f32x4.extract_lane 0
      (f32x4.add
        (f32x4.add
          (f32x4.add (f32x4.add (local.get $0) (local.get $1)) (f32x4.add (local.get $2) (local.get $3)))
          (f32x4.add (f32x4.add (local.get $4) (local.get $5)) (f32x4.add (local.get $6) (local.get $7))))
        (f32x4.add (f32x4.add (local.get $8) (local.get $9)) (f32x4.add (local.get $10) (local.get $11))))))

  ;; Copies 1 MiB (about a layer's hidden states) from one place in memory to another.
  (func (export "copy") (param $times i32)
    (local $i i32)
    (loop $again
      (local.set $i (i32.const 0))
      (loop $next
        (v128.store offset=2097152 (local.get $i) (v128.load (local.get $i)))
        (v128.store offset=2097168 (local.get $i) (v128.load offset=16 (local.get $i)))
        (v128.store offset=2097184 (local.get $i) (v128.load offset=32 (local.get $i)))
        (v128.store offset=2097200 (local.get $i) (v128.load offset=48 (local.get $i)))
        (br_if $next
          (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 64))) (i32.const 1048576))))
      (br_if $again (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))))
