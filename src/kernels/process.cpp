// What concerns the process as a whole.

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

namespace {

// Rust's runtime, which starts later than this, opens /dev/null in place of a standard stream that is closed.
const bool stdout_was_closed = fcntl(STDOUT_FILENO, F_GETFD) == -1 && errno == EBADF;

struct sigaction previous;

// Pages of a mapped file that are not there: whoever reads them gets this signal and nothing else. The program maps the files
// of a model and the parts that it merges. Calls nothing but what POSIX allows in a handler.
void end_at_lost_pages(int signal, siginfo_t* info, void*) {
    if (info->si_code <= 0) {
        // Somebody sent it.
        std::signal(signal, SIG_DFL);
        raise(signal);
        return;
    }
    if (info->si_code != BUS_ADRERR) {
        // Any other fault: it comes again when this returns, and takes its course.
        sigaction(signal, &previous, nullptr);
        return;
    }
    static volatile std::sig_atomic_t is_told = 0;
    if (!is_told) {
        is_told = 1;
        static const char line[] =
            "prior-embed: error: a file of the model, or a part to merge, was cut off or its disk failed while it was read; "
            "run again once it is whole\n";
        [[maybe_unused]] auto written = write(STDERR_FILENO, line, sizeof line - 1);
    }
    _exit(1);
}

}  // namespace

extern "C" {

// Makes two signals that end a process into errors: a file that grows too large is one of the call that writes, and a
// mapped file that lost pages is one line and exit code 1.
void prior_embed_tame_signals() {
    std::signal(SIGXFSZ, SIG_IGN);
    struct sigaction action = {};
    action.sa_sigaction = end_at_lost_pages;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGBUS, &action, &previous);
}

// Whether the process was started without a standard output.
bool prior_embed_stdout_was_closed() {
    return stdout_was_closed;
}

// Whether a signal is ignored.
bool prior_embed_is_ignored(int signal) {
    struct sigaction action;
    return sigaction(signal, nullptr, &action) == 0 && (action.sa_flags & SA_SIGINFO) == 0 &&
           action.sa_handler == SIG_IGN;
}

// Asks libtorch, before it allocates anything, for memory in huge pages: a model is loaded and read faster in these.
void prior_embed_prefer_huge_pages() {
    setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
}

// Ends the process without the destructors of what lives as long as it.
[[noreturn]] void prior_embed_leave(int code) {
    std::_Exit(code);
}

}  // extern "C"
