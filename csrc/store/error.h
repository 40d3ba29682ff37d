// The errors of the ring. bindings turn each into the Python class of the same name (lmcleaner_ext/errors.py).

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lmcleaner::store {

enum class ErrorKind {
    corrupt,               // step, chunk, message
    no_space,              // first = bytes needed, second = bytes free
    write,                 // message
    truncated,             // message
    locked,                // first = process id of the holder
    overwritten,           // step
    scrubbed,              // step
    version,               // message = found, detail = supported
    insecure_permissions,  // message = path, first = mode
    format,                // message
    system,                // message = path, first = errno: an OSError
};

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message, std::int64_t first = 0, std::int64_t second = 0,
          std::string detail = {})
        : std::runtime_error(message), kind(kind), first(first), second(second), detail(std::move(detail)) {}

    ErrorKind kind;
    std::int64_t first;
    std::int64_t second;
    std::string detail;
};

inline Error corrupt(std::int64_t step, std::int64_t chunk, const std::string& message) {
    return Error(ErrorKind::corrupt, message, step, chunk);
}
inline Error overwritten(std::int64_t step) {
    return Error(ErrorKind::overwritten, "step " + std::to_string(step) + " was overwritten", step);
}
inline Error scrubbed(std::int64_t step) {
    return Error(ErrorKind::scrubbed, "step " + std::to_string(step) + " was scrubbed", step);
}
inline Error bad_format(const std::string& message) {
    return Error(ErrorKind::format, message);
}

}  // namespace lmcleaner::store
