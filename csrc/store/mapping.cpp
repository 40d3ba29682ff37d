#include "store/mapping.h"

#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <mutex>

#include "store/error.h"
#include "store/format.h"

namespace lmcleaner::store {

// What the handler knows of a mapping. Never freed, so that a handler on another thread never looks at freed memory.
struct Guard {
    std::atomic<std::uintptr_t> begin = 0;  // 0: not in use
    std::atomic<std::uintptr_t> end = 0;
    std::atomic<bool> broken = false;
};

namespace {

std::array<Guard, 1024> guards;
std::mutex guards_mutex;  // for taking and giving back; the handler goes without
struct sigaction previous;

void on_bus_error(int signal, siginfo_t* info, void* context) {
    const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    const int saved = errno;
    for (Guard& guard : guards) {
        if (guard.begin == 0 || address < guard.begin || address >= guard.end) continue;
        guard.broken = true;
        void* page = reinterpret_cast<void*>(address / PAGE * PAGE);
        // mmap is a plain system call: safe here, although POSIX does not list it
        if (mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        errno = saved;
        return;  // the access is repeated and reads zeros
    }
    errno = saved;
    if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
    ::signal(SIGBUS, SIG_DFL);  // the access is repeated and ends the process, as it would have without us
}

// Again at each mapping: someone may have put a handler over ours.
void install_handler() {
    struct sigaction current = {};
    sigaction(SIGBUS, nullptr, &current);
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
    previous = current;
    struct sigaction ours = {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

Mapping::Mapping(int descriptor, std::uint64_t size) : size_(size), guard_(nullptr) {
    std::lock_guard lock(guards_mutex);
    for (Guard& guard : guards) {
        if (guard.begin != 0) continue;
        guard_ = &guard;
        break;
    }
    if (!guard_) throw Error(ErrorKind::system, "this process already reads 1024 logs", EMFILE);
    // Private and writable: tensors over the mapping count as writable, yet nothing written to them reaches the file.
    // NORESERVE, because otherwise the kernel refuses a private writable mapping that is larger than the memory.
    void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0);
    if (address == MAP_FAILED) throw Error(ErrorKind::system, "mapping a log", errno);
    data_ = static_cast<unsigned char*>(address);
    install_handler();
    guard_->broken = false;
    guard_->end = reinterpret_cast<std::uintptr_t>(address) + size;
    guard_->begin = reinterpret_cast<std::uintptr_t>(address);
}

Mapping::~Mapping() {
    std::lock_guard lock(guards_mutex);
    guard_->begin = 0;
    munmap(data_, size_);
}

bool Mapping::broken() const {
    return guard_->broken;
}

}  // namespace lmcleaner::store
