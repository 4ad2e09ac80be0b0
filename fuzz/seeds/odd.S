/* Call frame information that compilers seldom write, for seeds; see make.sh. */
#ifdef DEBUG_FRAME
	.cfi_sections DEBUG_FRAME
#endif
	.text
	.globl odd
odd:
	.cfi_startproc
	.cfi_undefined rip
	push %rbx
	.cfi_adjust_cfa_offset 8
	.cfi_offset rbx, -16
	.cfi_remember_state
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore rbx
	ret
	.cfi_restore_state
	mov %rsp, %r10
	.cfi_def_cfa r10, 16
	/* DW_CFA_def_cfa_expression: breg6 -8; deref */
	.cfi_escape 0x0f, 3, 0x76, 0x78, 0x06
	/* DW_CFA_expression rbp: breg6 0 */
	.cfi_escape 0x10, 6, 2, 0x76, 0
	nop
	.cfi_window_save
	.cfi_escape 0x2e, 0x10
	ret
	.cfi_endproc

/* Like libc's __restore_rt. */
trampoline:
	.cfi_startproc
	.cfi_signal_frame
	/* cfa = [rsp + 160] */
	.cfi_escape 0x0f, 4, 0x77, 0xa0, 0x01, 0x06
	/* rip = [rsp + 168] */
	.cfi_escape 0x10, 16, 3, 0x77, 0xa8, 0x01
	nop
	mov $15, %rax
	syscall
	.cfi_endproc

/* An entry of a linkage table. */
	.balign 16
plt:
	.cfi_startproc
	.cfi_escape 0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22
	push $1
	jmp odd
	.balign 16
	.cfi_endproc

/* Same code twice, and an end far away. */
overlap:
	.cfi_startproc
	.cfi_def_cfa rbp, 16
	nop
inner:
	nop
	.cfi_endproc
	.section .note.GNU-stack, "", @progbits
