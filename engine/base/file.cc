#include "engine/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace sluice {
namespace {

Error SystemError(const std::filesystem::path& path, const char* action, int number) {
  std::string message = "cannot ";
  message += action;
  message += " " + path.string() + ": " + std::strerror(number);
  return number == ENOENT ? NotFound(std::move(message)) : IoError(std::move(message));
}

}  // namespace

File::File(std::filesystem::path path, int descriptor, uint64_t size_bytes)
    : path_(std::move(path)), descriptor_(descriptor), size_bytes_(size_bytes) {}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_bytes_(other.size_bytes_) {}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    path_ = std::move(other.path_);
    descriptor_ = std::exchange(other.descriptor_, -1);
    size_bytes_ = other.size_bytes_;
  }
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<File> File::Open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe that has no writer must not hang before fstat can refuse it.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return SystemError(path, "open", errno);
  File file(path, descriptor, 0);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) return SystemError(path, "inspect", errno);
  if (!S_ISREG(status.st_mode)) {
    return InvalidArgument(path.string() + " is not a regular file");
  }
  file.size_bytes_ = static_cast<uint64_t>(status.st_size);
  return file;
}

Result<void> File::ReadAt(uint64_t offset_bytes, std::span<std::byte> destination) const {
  constexpr size_t kLargestRead = size_t{1} << 30;  // Linux caps one read just below 2 GiB
  while (!destination.empty()) {
    const size_t wanted = std::min(destination.size(), kLargestRead);
    const ssize_t got =
        ::pread(descriptor_, destination.data(), wanted, static_cast<off_t>(offset_bytes));
    if (got < 0) {
      if (errno == EINTR) continue;
      return SystemError(path_, "read", errno);
    }
    if (got == 0) {
      return Corrupt(path_.string() + " ends at byte " + std::to_string(offset_bytes) + ", " +
                     std::to_string(destination.size()) +
                     " bytes too early; it was truncated or replaced while it was in use");
    }
    destination = destination.subspan(static_cast<size_t>(got));
    offset_bytes += static_cast<uint64_t>(got);
  }
  return {};
}

Result<std::string> ReadTextFile(const std::filesystem::path& path, uint64_t max_bytes) {
  Result<File> file = File::Open(path);
  if (!file) return file.error();
  if (file->size_bytes() > max_bytes) {
    return Corrupt(path.string() + " has " + std::to_string(file->size_bytes()) +
                   " bytes; at most " + std::to_string(max_bytes) + " are accepted");
  }
  std::string text(static_cast<size_t>(file->size_bytes()), '\0');
  Result<void> read = file->ReadAt(0, std::as_writable_bytes(std::span(text)));
  if (!read) return read.error();
  return text;
}

}  // namespace sluice
