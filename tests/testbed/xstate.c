/* Preloaded into User Mode Linux on processors whose state does not fit into it (AMX: 11008 bytes, it has room for 2696).
 *
 * It reads the state of its processes as far as it has room, and writes that back; the kernel refuses to be given a part
 * (ptrace(2), PTRACE_SETREGSET, NT_X86_XSTATE: EFAULT), and User Mode Linux ends with its first process. Here the rest
 * is what the process has already. Linux 6.13 needs none of this.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static char state[1 << 16]; /* not on the stack: that of a kernel thread is small */

long ptrace(enum __ptrace_request request, ...)
{
	static long (*original)(enum __ptrace_request, ...);
	va_list arguments;

	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (!original)
		original = dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
		struct iovec *part = data, whole = {state, sizeof state};

		if (original(PTRACE_GETREGSET, pid, address, &whole) == 0 && whole.iov_len > part->iov_len) {
			memcpy(state, part->iov_base, part->iov_len);
			return original(request, pid, address, &whole);
		}
	}
	return original(request, pid, address, data);
}
