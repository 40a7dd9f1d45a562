/* A stand-in for Pyxis, as a SPANK plugin: it gives srun
 *
 *     --container-image=FOLDER             a root file system
 *     --container-mounts=FROM:TO[:ro],...  folders and files of the node in it
 *     --container-workdir=FOLDER           where in it the task starts
 *     --container-env=NAME,...             taken and left: an image here brings no variables that could win
 *
 * Every task gets a mount namespace of its own, in which /proc, /sys and /dev of the node and what was asked for are
 * bound into the image, and which it is then locked into. What must be mounted upon is made in the image, with root's
 * rights: an image is there for tests, and to spare.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

SPANK_PLUGIN(container, 1);

enum { IMAGE, MOUNTS, WORKDIR, ENV, OPTIONS };
static char *given[OPTIONS];

static int take(int option, const char *value, int remote)
{
    (void)remote;
    if (option == IMAGE && value[0] != '/') {
        slurm_error("container: the image %s is no absolute path", value);
        return -1;
    }
    given[option] = strdup(value);
    return 0;
}

static struct spank_option options[] = {
    {"container-image", "FOLDER", "the root file system to run in", 1, IMAGE, take},
    {"container-mounts", "FROM:TO[:ro],...", "what of the node to mount in it", 1, MOUNTS, take},
    {"container-workdir", "FOLDER", "the folder in it to start in", 1, WORKDIR, take},
    {"container-env", "NAME,...", "variables that win over the image's", 1, ENV, take},
    SPANK_OPTIONS_TABLE_END,
};

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
    (void)count, (void)arguments;
    for (struct spank_option *option = options; option->name; option++)
        if (spank_option_register(spank, option) != ESPANK_SUCCESS)
            return -1;
    return 0;
}

static int failed(const char *doing, const char *what)
{
    slurm_error("container: %s %s: %s", doing, what, strerror(errno));
    return -1;
}

/* Make a folder, or an empty file, and the folders that it lies in; what is there stays. */
static void make(char *path, int folder)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
    if (folder)
        mkdir(path, 0755);
    else
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
}

static int bind(const char *from, const char *to, int read_only)
{
    char path[PATH_MAX];
    struct stat found;

    if (stat(from, &found))
        return failed("mounting", from);
    if (snprintf(path, sizeof path, "%s/%s", given[IMAGE], to) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return failed("mounting", to);
    }
    make(path, S_ISDIR(found.st_mode));
    if (mount(from, path, NULL, MS_BIND | MS_REC, NULL))
        return failed("mounting", from);
    if (read_only && mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL))
        return failed("making read-only", to);
    return 0;
}

static int bind_all(char *mounts)
{
    char *rest, *fields;

    for (char *each = strtok_r(mounts, ",", &rest); each; each = strtok_r(NULL, ",", &rest)) {
        char *from = strtok_r(each, ":", &fields);
        char *to = strtok_r(NULL, ":", &fields);
        char *flags = strtok_r(NULL, ":", &fields);
        if (bind(from, to ? to : from, flags && !strcmp(flags, "ro")))
            return -1;
    }
    return 0;
}

/* As root, before the task becomes its user. */
int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments)
{
    (void)spank, (void)count, (void)arguments;
    if (!given[IMAGE])
        return 0;
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return failed("leaving the node's mounts for", given[IMAGE]);
    if (mount(given[IMAGE], given[IMAGE], NULL, MS_BIND | MS_REC, NULL))
        return failed("mounting the image", given[IMAGE]);
    if (bind("/proc", "/proc", 0) || bind("/sys", "/sys", 0) || bind("/dev", "/dev", 0))
        return -1;
    if (given[MOUNTS] && bind_all(given[MOUNTS]))
        return -1;
    if (chroot(given[IMAGE]) || chdir("/"))
        return failed("entering", given[IMAGE]);
    return 0;
}

int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
    (void)spank, (void)count, (void)arguments;
    if (given[IMAGE] && chdir(given[WORKDIR] ? given[WORKDIR] : "/"))
        return failed("starting in", given[WORKDIR] ? given[WORKDIR] : "/");
    return 0;
}
