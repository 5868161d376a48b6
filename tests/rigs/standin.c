/*
 * Stands in for the hypervisor below an unmodified xenstored or oxenstored (LD_PRELOAD).
 *
 * Everything of it is in the directory STANDIN_DIR:
 *   evtchn         fifo: whoever writes a port (32 bits) to it raises that event channel
 *   evtchn.<port>  fifo: the server's notifications of that port, one byte each, if the fifo is there
 *   ring.<domid>   the page that a guest shares with the server, a struct xenstore_domain_interface
 *   dead.<domid>   the domain does not exist; every other does
 *   xsd_kva, xsd_port, socket   what the servers look for below /proc/xen and /var/run/xenstored
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define XC_WANT_COMPAT_MAP_FOREIGN_API
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096
/* A guest's port is this and its domid: both ends know it without being told. */
#define FIRST_PORT 0x1000
#define VIRQ_PORT 1

static const char *directory = ".";
static int event_fd = -1;
static char handle; /* something whose address is not NULL */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *parent = getenv("STANDIN_PARENT");

    if (getenv("STANDIN_DIR"))
        directory = getenv("STANDIN_DIR");
    /* A server must not outlive its test run, however that ends. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (parent && getppid() != atoi(parent))
        _exit(1);
}

static char *place(char *buffer, const char *format, ...)
{
    va_list args;
    size_t used = snprintf(buffer, PATH_MAX, "%s/", directory);

    va_start(args, format);
    vsnprintf(buffer + used, PATH_MAX - used, format, args);
    va_end(args);
    return buffer;
}

/* The servers' fixed places are moved into the directory: nothing of the machine is touched. */
static const char *redirect(char *buffer, const char *path)
{
    static const char *const fixed[] = { "/proc/xen", "/var/run/xenstored", "/run/xenstored" };

    for (size_t i = 0; i < sizeof(fixed) / sizeof(*fixed); i++) {
        size_t length = strlen(fixed[i]);
        if (!strncmp(path, fixed[i], length) && (!path[length] || path[length] == '/'))
            return place(buffer, "%s", path + length);
    }
    return path;
}

int open(const char *path, int flags, ...)
{
    char buffer[PATH_MAX];
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
    return REAL(open)(redirect(buffer, path), flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    return REAL(mkdir)(redirect(buffer, path), mode);
}

int unlink(const char *path)
{
    char buffer[PATH_MAX];
    return REAL(unlink)(redirect(buffer, path));
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_un moved = { .sun_family = AF_UNIX };
    char buffer[PATH_MAX];
    const char *path;

    if (address->sa_family != AF_UNIX)
        return REAL(bind)(fd, address, length);
    path = redirect(buffer, ((const struct sockaddr_un *)address)->sun_path);
    if (strlen(path) >= sizeof(moved.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(moved.sun_path, path);
    return REAL(bind)(fd, (struct sockaddr *)&moved, sizeof(moved));
}

/* From here on the socket answers: say so, nobody needs to poll for it. */
int listen(int fd, int backlog)
{
    int result = REAL(listen)(fd, backlog < 64 ? 64 : backlog);
    const char *ready = getenv("STANDIN_READY_FD");

    if (!result && ready) {
        if (write(atoi(ready), "", 1) != 1)
            result = -1;
        close(atoi(ready));
        unsetenv("STANDIN_READY_FD");
    }
    return result;
}

/* oxenstored asks for more descriptors than a container may have, and ends when refused. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
    (void)resource, (void)limit;
    return 0;
}

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
    char buffer[PATH_MAX];

    (void)logger, (void)flags;
    /* Both ends open, so that it never reads as closed. */
    event_fd = REAL(open)(place(buffer, "evtchn"), O_RDWR | O_NONBLOCK);
    return event_fd < 0 ? NULL : (xenevtchn_handle *)&handle;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
    (void)xce;
    return close(event_fd);
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    (void)xce;
    return event_fd;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    char buffer[PATH_MAX];
    int fd = REAL(open)(place(buffer, "evtchn.%u", port), O_RDWR | O_NONBLOCK);

    (void)xce;
    if (fd < 0)
        return 0; /* nobody listens */
    if (write(fd, "", 1) < 0 && errno != EAGAIN) { /* full: it is awake already */
        close(fd);
        return -1;
    }
    return close(fd);
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
                                                     evtchn_port_t remote)
{
    (void)xce, (void)remote;
    return FIRST_PORT + domid;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
    (void)xce, (void)virq;
    return VIRQ_PORT;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    (void)xce, (void)port;
    return 0;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    evtchn_port_t port;

    (void)xce;
    return read(event_fd, &port, sizeof(port)) == sizeof(port) ? (int)port : -1;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    (void)xce, (void)port;
    return 0;
}

static void *map_ring(uint32_t domid)
{
    char buffer[PATH_MAX];
    int fd = REAL(open)(place(buffer, "ring.%u", domid), O_RDWR | O_CREAT, 0600);
    void *page;

    if (fd < 0)
        return NULL;
    page = ftruncate(fd, PAGE) ? MAP_FAILED
                               : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned flags)
{
    (void)logger, (void)flags;
    return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt)
{
    (void)xgt;
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t count)
{
    (void)xgt, (void)count;
    return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
    (void)xgt, (void)ref, (void)prot;
    return map_ring(domid);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count)
{
    (void)xgt;
    return munmap(start, (size_t)count * PAGE);
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t domid, int size, int prot, unsigned long mfn)
{
    (void)xch, (void)size, (void)prot, (void)mfn;
    return map_ring(domid);
}

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *builder,
                                unsigned flags)
{
    (void)logger, (void)builder, (void)flags;
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

static int exists(uint32_t domid)
{
    char buffer[PATH_MAX];
    return access(place(buffer, "dead.%u", domid), F_OK) != 0;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int count, xc_dominfo_t *info)
{
    (void)xch, (void)count;
    memset(info, 0, sizeof(*info));
    info->domid = first;
    return exists(first);
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first, unsigned int count,
                          xc_domaininfo_t *info)
{
    (void)xch, (void)count;
    memset(info, 0, sizeof(*info));
    info->domain = first;
    return exists(first);
}

/* For oxenstored's exception when a domain does not exist: the real one would look into xch. */
const xc_error *xc_get_last_error(xc_interface *xch)
{
    static const xc_error none = { .code = XC_ERROR_NONE };

    (void)xch;
    return &none;
}
