/* Faults at chosen file operations, for tests: LD_PRELOAD this, then arm it.

   One fault is armed at a time: the `ordinal`-th operation of a kind (or any)
   on a path that matches a pattern kills the process, writes half and kills it,
   fails with an errno (once, or from then on), or sends the process the signal
   of that number and goes on. TensorStore's C++ writes and
   Python's go through here alike. Every operation counted can be logged. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, TORN, FAIL, SIGNAL };

static volatile int armed, action, error_number, persistent;
static long ordinal;
static long count;
static int log_fd = -1;
static char kind[32], pattern[1024], fired_path[1024];

void shim_arm(const char *k, const char *p, long n, int what, int err, int all,
              const char *fired, int log) {
  strncpy(kind, k, sizeof kind - 1);
  strncpy(pattern, p, sizeof pattern - 1);
  strncpy(fired_path, fired, sizeof fired_path - 1);
  ordinal = n;
  action = what;
  error_number = err;
  persistent = all;
  log_fd = log;
  armed = 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note_fired(void) {
  int (*real_open)(const char *, int, ...) =
      (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
  int fd = real_open(fired_path, O_WRONLY | O_CREAT, 0644);
  if (fd >= 0) close(fd);
}

/* What to do at this operation; KILL does not come back. */
static int fault(const char *k, const char *path) {
  if (!armed || !path || fnmatch(pattern, path, 0)) return NOTHING;
  if (strcmp(kind, "*") && strcmp(kind, k)) return NOTHING;
  long n = __sync_add_and_fetch(&count, 1);
  if (log_fd >= 0) dprintf(log_fd, "%s %s\n", k, path);
  if (!action || n < ordinal || (n > ordinal && !persistent)) return NOTHING;
  note_fired();
  if (action == KILL || (action == TORN && strcmp(k, "write")))
    kill(getpid(), SIGKILL);
  if (action == SIGNAL) {
    kill(getpid(), error_number);
    return NOTHING;
  }
  if (action == FAIL) errno = error_number;
  return action;
}

static const char *path_of(int fd, char *buffer) {
  char link[64];
  if (!armed || fd == log_fd) return NULL;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, buffer, 1023);
  if (n < 0) return NULL;
  buffer[n] = 0;
  return buffer;
}

static const char *path_at(int fd, const char *path, char *buffer) {
  char folder[1024];
  if (!armed || !path || path[0] == '/' || fd == AT_FDCWD) return path;
  if (!path_of(fd, folder)) return path;
  snprintf(buffer, 1023, "%s/%s", folder, path);
  return buffer;
}

#define OPEN(name, before, given, at)                                     \
  int name(before const char *path, int flags, ...) {                     \
    char buffer[1024];                                                    \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | O_TMPFILE)) {                                  \
      va_list rest;                                                       \
      va_start(rest, flags);                                              \
      mode = va_arg(rest, mode_t);                                        \
      va_end(rest);                                                       \
    }                                                                     \
    const char *what = flags & (O_WRONLY | O_RDWR) ? "open" : "openread"; \
    if (fault(what, path_at(at, path, buffer)) == FAIL) return -1;        \
    return REAL(name)(given path, flags, mode);                           \
  }
#define NONE
OPEN(open, NONE, NONE, AT_FDCWD)
OPEN(open64, NONE, NONE, AT_FDCWD)
#define BEFORE int dirfd,
#define GIVEN dirfd,
OPEN(openat, BEFORE, GIVEN, dirfd)
OPEN(openat64, BEFORE, GIVEN, dirfd)

static int write_fault(int fd) {
  char buffer[1024];
  return fault("write", path_of(fd, buffer));
}

ssize_t write(int fd, const void *data, size_t size) {
  int what = write_fault(fd);
  if (what == FAIL) return -1;
  if (what == TORN) {
    REAL(write)(fd, data, size / 2);
    kill(getpid(), SIGKILL);
  }
  return REAL(write)(fd, data, size);
}

#define PWRITE(name, offset_type)                                             \
  ssize_t name(int fd, const void *data, size_t size, offset_type offset) {   \
    int what = write_fault(fd);                                               \
    if (what == FAIL) return -1;                                              \
    if (what == TORN) {                                                       \
      REAL(name)(fd, data, size / 2, offset);                                 \
      kill(getpid(), SIGKILL);                                                \
    }                                                                         \
    return REAL(name)(fd, data, size, offset);                                \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int number) {
  int what = write_fault(fd);
  if (what == FAIL) return -1;
  if (what == TORN) {
    REAL(write)(fd, parts[0].iov_base, parts[0].iov_len / 2);
    kill(getpid(), SIGKILL);
  }
  return REAL(writev)(fd, parts, number);
}

#define ON_FD(name, k, more, given)                       \
  int name(int fd more) {                                 \
    char buffer[1024];                                    \
    if (fault(k, path_of(fd, buffer)) == FAIL) return -1; \
    return REAL(name)(fd given);                          \
  }
ON_FD(fsync, "fsync", , )
ON_FD(fdatasync, "fsync", , )
#define LENGTH , off_t length
#define LENGTH64 , off64_t length
#define PASS , length
ON_FD(ftruncate, "truncate", LENGTH, PASS)
ON_FD(ftruncate64, "truncate", LENGTH64, PASS)

int rename(const char *from, const char *to) {
  if (fault("rename", to) == FAIL) return -1;
  return REAL(rename)(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
  char buffer[1024];
  if (fault("rename", path_at(b, to, buffer)) == FAIL) return -1;
  return REAL(renameat)(a, from, b, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  char buffer[1024];
  if (fault("rename", path_at(b, to, buffer)) == FAIL) return -1;
  return REAL(renameat2)(a, from, b, to, flags);
}

#define ON_PATH(name, k, more, given)          \
  int name(const char *path more) {            \
    if (fault(k, path) == FAIL) return -1;     \
    return REAL(name)(path given);             \
  }
#define MODE , mode_t mode
#define PASS_MODE , mode
ON_PATH(mkdir, "mkdir", MODE, PASS_MODE)
ON_PATH(unlink, "unlink", , )
ON_PATH(rmdir, "unlink", , )

int mkdirat(int fd, const char *path, mode_t mode) {
  char buffer[1024];
  if (fault("mkdir", path_at(fd, path, buffer)) == FAIL) return -1;
  return REAL(mkdirat)(fd, path, mode);
}

int unlinkat(int fd, const char *path, int flags) {
  char buffer[1024];
  if (fault("unlink", path_at(fd, path, buffer)) == FAIL) return -1;
  return REAL(unlinkat)(fd, path, flags);
}
