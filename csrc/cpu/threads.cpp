#include "cpu/threads.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif
#ifdef PIXELFAST_X86
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

namespace pixelfast {
namespace {

constexpr auto kTick = std::chrono::milliseconds(50);

struct Job {
  const std::function<void(int)>* body;
  int remaining;  // bodies that have not returned; under the pool's mutex
  std::exception_ptr error;
  std::atomic<bool>* stop;
  std::condition_variable finished;
};

class Pool {
 public:
  // Never destroyed: its threads may be asleep in it when the process ends.
  static Pool& instance() {
    Pool* pool = current_.load(std::memory_order_acquire);
    if (pool == nullptr) {
      Pool* fresh = new Pool;
      if (current_.compare_exchange_strong(pool, fresh)) {
        static const int registered = pthread_atfork(nullptr, nullptr, [] { current_.store(nullptr); });
        (void)registered;
        return *fresh;
      }
      delete fresh;  // another thread was first
    }
    return *pool;
  }

  void run(int n, const std::function<void(int)>& body, const std::function<void()>& tick,
           std::atomic<bool>& stop) {
    Job job{&body, n, nullptr, &stop, {}};
    std::unique_lock<std::mutex> lock(mutex_);
    // Tickets are taken in order, and a job's all run at a time once those before it are done.
    grow(n);
    for (int i = 0; i < n; ++i) tickets_.push_back({&job, i});
    wake_.notify_all();
    while (!job.finished.wait_for(lock, kTick, [&] { return job.remaining == 0; })) {
      lock.unlock();
      std::exception_ptr error;
      try {
        if (!stop.load(std::memory_order_relaxed)) tick();
      } catch (...) {
        error = std::current_exception();
        stop.store(true);
      }
      lock.lock();
      if (error && !job.error) job.error = error;
    }
    lock.unlock();
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  struct Ticket {
    Job* job;
    int index;
  };

  void grow(int n) {
    for (; threads_ < n; ++threads_) std::thread([this] { work(); }).detach();
  }

  void work() {
    const FloatMode mode;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !tickets_.empty(); });
      const Ticket ticket = tickets_.front();
      tickets_.pop_front();
      lock.unlock();
      std::exception_ptr error;
      try {
        (*ticket.job->body)(ticket.index);
      } catch (...) {
        error = std::current_exception();
        ticket.job->stop->store(true);
      }
      lock.lock();
      if (error && !ticket.job->error) ticket.job->error = error;
      if (--ticket.job->remaining == 0) ticket.job->finished.notify_all();
    }
  }

  static std::atomic<Pool*> current_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Ticket> tickets_;
  int threads_ = 0;
};

std::atomic<Pool*> Pool::current_{nullptr};

// Processors' worth of time that the cgroup allows, or 0 where it sets no limit.
double cgroup_quota() {
#ifdef __linux__
  std::string quota;
  double period = 0;
  std::string group, line;
  std::ifstream groups("/proc/self/cgroup");
  while (std::getline(groups, line)) {
    if (line.rfind("0::", 0) == 0) group = line.substr(3);
  }
  for (const std::string& path :
       {"/sys/fs/cgroup" + group + "/cpu.max", std::string("/sys/fs/cgroup/cpu.max")}) {
    std::ifstream v2(path);
    if (v2 >> quota >> period && quota != "max" && period > 0) return std::atof(quota.c_str()) / period;
  }
  double v1_quota = 0;
  std::ifstream v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (v1 >> v1_quota && v1_period >> period && v1_quota > 0 && period > 0) return v1_quota / period;
#endif
  return 0;
}

int usable_processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

int default_threads() {
  const char* variable = std::getenv("PIXELFAST_THREADS");
  if (variable != nullptr && *variable != '\0') {
    char* end = nullptr;
    const long n = std::strtol(variable, &end, 10);
    if (*end != '\0' || n < 1 || n > kMaxThreads) {
      throw std::invalid_argument(std::string("[threads] PIXELFAST_THREADS must be a number from 1 to ") +
                                  std::to_string(kMaxThreads) + ", got '" + variable + "'");
    }
    return static_cast<int>(n);
  }
  const int processors = std::min(usable_processors(), kMaxThreads);
  const double quota = cgroup_quota();
  return quota > 0 ? std::clamp(static_cast<int>(std::ceil(quota)), 1, processors) : processors;
}

void run_threads(int n, const std::function<void(int)>& body, const std::function<void()>& tick,
                 std::atomic<bool>& stop) {
  Pool::instance().run(n, body, tick, stop);
}

#ifdef PIXELFAST_X86
constexpr unsigned kDefaultMode = 0x1F80;  // all exceptions masked, round to nearest, no flushing to zero
FloatMode::FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(kDefaultMode); }
FloatMode::~FloatMode() { _mm_setcsr(saved_); }
#else
FloatMode::FloatMode() = default;
FloatMode::~FloatMode() { (void)saved_; }
#endif

}  // namespace pixelfast
