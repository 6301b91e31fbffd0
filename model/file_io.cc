#include "model/file_io.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/strings.h"
#include "base/unix_fd.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif

namespace agentserve::model {
namespace {

using base::StrCat;

absl::Status FileError(const std::string& path, const char* what, int error) {
  const std::string message = StrCat(path, ": ", std::string_view(what), ": ", std::string_view(std::strerror(error)));
  return error == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
}

absl::StatusOr<base::UniqueFd> OpenRegular(const std::string& path, size_t* size) {
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return FileError(path, "cannot open", errno);
  struct stat st = {};
  if (fstat(fd.get(), &st) != 0) return FileError(path, "cannot stat", errno);
  if (!S_ISREG(st.st_mode)) return absl::InvalidArgumentError(StrCat(path, ": not a regular file"));
  *size = static_cast<size_t>(st.st_size);
  return fd;
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t most) {
  size_t size = 0;
  absl::StatusOr<base::UniqueFd> fd = OpenRegular(path, &size);
  if (!fd.ok()) return fd.status();
  if (size > most) {
    return absl::InvalidArgumentError(StrCat(path, ": ", size, " bytes; at most ", most, " are accepted"));
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = read(fd->get(), text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FileError(path, "cannot read", errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  MappedFile file;
  file.path_ = path;
  absl::StatusOr<base::UniqueFd> fd = OpenRegular(path, &file.size_);
  if (!fd.ok()) return fd.status();
  if (file.size_ == 0) return absl::InvalidArgumentError(StrCat(path, ": the file is empty"));
  void* p = mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd->get(), 0);
  if (p == MAP_FAILED) {
    file.size_ = 0;
    return FileError(path, "cannot map", errno);
  }
  file.data_ = static_cast<const std::byte*>(p);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& o) noexcept
    : path_(std::move(o.path_)), data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

void MappedFile::Populate(size_t offset, size_t size) const {
  constexpr size_t kPage = 4096;
  const size_t begin = offset / kPage * kPage;
  const size_t end = std::min(size_, offset + size);
  if (begin >= end) return;
  if (madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_POPULATE_READ) == 0) return;
  for (size_t at = begin; at < end; at += kPage) static_cast<void>(*static_cast<const volatile std::byte*>(data_ + at));
}

}  // namespace agentserve::model
