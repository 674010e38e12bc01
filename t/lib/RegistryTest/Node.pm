package RegistryTest::Node;

# One nginx (a master and its workers) with its own prefix, ports and logs.
#
# In the configuration's text %%PORT%% is the node's port, %%PORT_x%% a further free
# one for each name x, and %%DIR%% the prefix.

use strict;
use warnings;

use RegistryTest::Client ();
use RegistryTest::Process qw(
    free_port temp_dir slurp spew spawn alive exit_status end_process stop_process kill_group children
    track forget on_exit fail_at_exit wait_until time_scale bad_log_lines
    find_binary binary_info valgrind_command valgrind_reports
);
use Test::More ();

my @NODES;

# What the node is made of; all optional:
#   http, server, main, events   configuration; server is the inside of a server block
#                  that listens on 127.0.0.1:%%PORT%%
#   workers (2), master (1: 0 is master_process off), worker_connections (512)
#   log_level (info), env (a hash of variables for nginx; also written as env lines)
#   modules        paths to load (those in TEST_NGINX_LOAD_MODULES); [] for none
#   binary         (TEST_NGINX_BINARY)
#   daemon         1 makes it a daemon, as a binary upgrade needs: nginx ignores
#                  USR2 while the process that started it is still its parent
#   start          0: only write the configuration
my %DEFAULTS = (
    http => '', main => '', events => '', workers => 2, master => 1, worker_connections => 512,
    log_level => 'info', env => {}, daemon => 0, start => 1,
);

sub new {
    my ($class, %opt) = @_;
    my $self = bless { %DEFAULTS, ports => {}, allowed => [], log_checked => 0, %opt }, $class;
    $self->{dir} = temp_dir();
    $self->{binary} ||= find_binary();
    $self->{modules} ||= [ split ' ', $ENV{TEST_NGINX_LOAD_MODULES} || '' ];
    mkdir "$self->{dir}/$_" for qw(conf logs html);
    spew("$self->{dir}/html/index.html", "It works!\n");
    push @NODES, $self;
    $self->_write_conf;
    $self->start if $self->{start};
    return $self;
}

sub dir { return $_[0]{dir} }
sub pid { return $_[0]{pid} }

sub port {
    my ($self, $name) = @_;
    return $self->{ports}{ defined $name ? $name : '' } ||= free_port();
}

sub address { my ($self, $name) = @_; return '127.0.0.1:' . $self->port($name) }

# http://127.0.0.1:PORT/path; a second argument names another of its ports.
sub url {
    my ($self, $path, $name) = @_;
    return 'http://' . $self->address($name) . (defined $path ? $path : '/');
}

# A connection of its own for each request; client is one that stays.
sub get  { my ($self, $path, %opt) = @_; return RegistryTest::Client::http('GET', $self->url($path), %opt) }
sub post { my ($self, $path, %opt) = @_; return RegistryTest::Client::http('POST', $self->url($path), %opt) }
sub client { my ($self, %opt) = @_; return RegistryTest::Client->new($self->address, %opt) }

# Configuration

sub _expand {
    my ($self, $text) = @_;
    $text =~ s/%%PORT(?:_(\w+))?%%/$self->port($1)/ge;
    $text =~ s/%%DIR%%/$self->{dir}/g;
    return $text;
}

# nginx would otherwise use the paths it was built with, which only root may write.
sub _temp_paths {
    my ($self) = @_;
    my $without = binary_info($self->{binary})->{text};
    return join '', map {
        my ($directive, $module, $dir) = @$_;
        $without =~ /--without-http_${module}_module/ || $self->{http} =~ /\b$directive\b/
            ? '' : "    $directive $self->{dir}/$dir;\n";
    } ([ 'client_body_temp_path', 'none', 'body_temp' ],
        map { [ "${_}_temp_path", $_, "${_}_temp" ] } qw(proxy fastcgi uwsgi scgi));
}

# The whole nginx.conf as it will be written.
sub conf_text {
    my ($self) = @_;
    my $conf = join '', map { "load_module $_;\n" } @{ $self->{modules} };
    $conf .= "daemon " . ($self->{daemon} ? 'on' : 'off') . ";\n";
    $conf .= "master_process off;\n" unless $self->{master};
    $conf .= "worker_processes $self->{workers};\n";
    $conf .= "error_log $self->{dir}/logs/error.log $self->{log_level};\n";
    $conf .= "pid $self->{dir}/logs/nginx.pid;\n";
    # Workers write into a directory that root made.
    $conf .= "user root;\n" if $> == 0 && $self->{main} !~ /^\s*user\s/m;
    $conf .= "env $_;\n" for sort keys %{ $self->{env} };
    $conf .= "$self->{main}\n";
    my $events = $self->{events} =~ /worker_connections/
        ? '' : "worker_connections $self->{worker_connections};";
    $conf .= "events {\n    $events\n$self->{events}\n}\n";
    $conf .= "http {\n    access_log $self->{dir}/logs/access.log;\n" . $self->_temp_paths;
    $conf .= "$self->{http}\n";
    $conf .= "server {\n    listen 127.0.0.1:%%PORT%%;\n$self->{server}\n}\n" if defined $self->{server};
    return $self->_expand("$conf}\n");
}

sub conf_file { return "$_[0]{dir}/conf/nginx.conf" }

sub _write_conf { my ($self) = @_; spew($self->conf_file, $self->conf_text); return $self }

# Changes parts (http, server, main, events, workers, log_level ...) and writes the
# file; nginx sees it at its next reload or start.
sub set_conf {
    my ($self, %parts) = @_;
    @$self{ keys %parts } = values %parts;
    return $self->_write_conf;
}

sub _command {
    my ($self, @more) = @_;
    my @command = ($self->{binary}, '-p', "$self->{dir}/", '-c', $self->conf_file, @more);
    # Before the configuration is read nginx logs to a place chosen when it was built.
    push @command, '-e', "$self->{dir}/logs/error.log" if binary_info($self->{binary})->{number} >= 1.019005;
    return @command;
}

# nginx -t: (exit code, output). With text the file is left as it is and that is
# tried instead.
sub test_conf {
    my ($self, $text) = @_;
    my $file = $self->conf_file;
    my $out = "$self->{dir}/test_conf.out";
    unlink $out;
    my @command = $self->_command('-t');
    if (defined $text) {
        $file = spew("$self->{dir}/conf/test.conf", $self->_expand($text));
        @command = map { $_ eq $self->conf_file ? $file : $_ } @command;
    }
    # Its complaints are what is asked for, and no business of the node's log.
    @command = map { $_ eq "$self->{dir}/logs/error.log" ? "$self->{dir}/test_conf.log" : $_ } @command;
    my $pid = spawn(\@command, stdout => $out, stderr => $out, env => $self->{env});
    wait_until(sub { !alive($pid) }, 10 * time_scale()) or stop_process($pid, KILL => 1);
    forget($pid);
    my $status = exit_status($pid);
    return (defined $status ? ($status >> 8 || $status & 127) : -1, slurp($out));
}

# Life

sub _valgrind { my ($self) = @_; return valgrind_command("$self->{dir}/logs") }

# Returns when nginx listens and its workers are there. When it does not start:
# with fails => 1 false, and start_error is what nginx said; else the test dies with it.
sub start {
    my ($self, %opt) = @_;
    die "the node runs already\n" if $self->running;
    unlink "$self->{dir}/logs/nginx.pid";
    my $stderr = "$self->{dir}/logs/stderr.log";
    my $from = $self->log_size;
    my $pid = spawn([ $self->_valgrind, $self->_command ], stderr => $stderr, env => $self->{env});
    $self->{group} = $pid;

    # The pid file is written once the sockets listen; by a daemon after the process
    # that we started has ended well.
    wait_until(sub {
        $self->_pid_in_file || !alive($pid) && !($self->{daemon} && exit_status($pid) == 0);
    }, 20 * time_scale());
    if ($self->{daemon} && $self->_pid_in_file) {
        wait_until(sub { !alive($pid) }, 5 * time_scale());
        forget($pid);
        track($self->{group} = $pid = $self->_pid_in_file);    # a session of its own
    }
    if ($self->_pid_in_file && alive($pid)) {
        $self->{pid} = $pid;
        my $count = $self->_worker_count;
        return $self if wait_until(sub { $self->workers == $count || !alive($pid) }, 5 * time_scale())
            && alive($pid);
    }
    my $said = slurp($stderr) . $self->error_log($from);
    kill_group($self->{group});
    delete $self->{pid};
    if ($opt{fails}) {
        # What was expected is no alarm.
        $self->{start_error} = $said;
        truncate $self->log_file, $from;
        return;
    }
    Test::More::diag("nginx did not start:\n$said\n" . slurp($self->conf_file));
    die "nginx did not start\n";
}

sub start_error { return $_[0]{start_error} }

sub _pid_in_file {
    my ($self) = @_;
    my ($pid) = slurp("$self->{dir}/logs/nginx.pid") =~ /^(\d+)\n/ or return;
    return $pid;
}

sub _worker_count {
    my ($self) = @_;
    return $self->{master} && $self->{main} !~ /master_process\s+off/ ? $self->{workers} : 0;
}

sub running { return $_[0]{pid} && alive($_[0]{pid}) }

sub signal { my ($self, $signal) = @_; return kill $signal, $self->{pid} }

# SIGQUIT, and waits until requests have ended and nginx is gone; false when it was
# not by then (it runs on).
sub quit {
    my ($self, %opt) = @_;
    return 1 unless $self->running;
    my $timeout = defined $opt{timeout} ? $opt{timeout} : 10 * time_scale();
    return unless end_process($self->{pid}, 'QUIT', $timeout);
    kill_group($self->{group});
    delete $self->{pid};
    return 1;
}

# SIGTERM: requests are cut off.
sub stop {
    my ($self) = @_;
    return 1 unless $self->running;
    my $signal = stop_process($self->{pid}, TERM => 10);
    kill_group($self->{group});
    delete $self->{pid};
    return $signal eq 'TERM';
}

# SIGKILL to master and workers at once, as when the machine fails.
sub kill_all {
    my ($self) = @_;
    my $gone = kill_group($self->{group});
    delete $self->{pid};
    unlink "$self->{dir}/logs/nginx.pid";
    return $gone;
}

sub restart { my ($self, %opt) = @_; $self->stop; return $self->start(%opt) }

# Workers

# The workers of a master, by what they call themselves. Under valgrind, which hides
# a process' title, by what they log.
sub _workers {
    my ($self, $old, $master) = @_;
    $master ||= $self->{pid} or return;
    if ($ENV{TEST_NGINX_USE_VALGRIND}) {
        my %leaving = map { $_ => 1 } $self->error_log =~ /\] (\d+)#\d+: gracefully shutting down/g;
        return grep {
            alive($_) && $_ != $self->{pid} && ($leaving{$_} || 0) == $old
        } children($master);
    }
    my $title = 'nginx: worker process' . ($old ? ' is shutting down' : '');
    return grep { slurp("/proc/$_/cmdline") =~ /^$title[\0 ]*\z/ } children($master);
}

# pids of the workers that take new connections, oldest first; and of those that only
# finish what they have, after a reload.
sub workers { my ($self, $master) = @_; return $self->_workers(0, $master) }
sub old_workers { my ($self, $master) = @_; return $self->_workers(1, $master) }

# SIGHUP. Waits until a whole set of new workers is there and the old ones are gone;
# wait => 'new': the old ones may still be busy; wait => 0: for nothing. False when
# the new configuration was refused, or the time (timeout) was up.
sub reload {
    my ($self, %opt) = @_;
    # It reads the file and then accepts no connection any more: stock nginx does not
    # give the new cycle an event loop.
    die "nginx cannot reload without a master\n" unless $self->_worker_count;
    my %before = map { $_ => 1 } $self->workers, $self->old_workers;
    my $from = $self->log_size;
    my $wait = defined $opt{wait} ? $opt{wait} : 'all';
    $self->signal('HUP');
    return 1 unless $wait;

    my $timeout = defined $opt{timeout} ? $opt{timeout} : 10 * time_scale();
    my $refused;
    my $done = wait_until(sub {
        return 1 if $refused = $self->error_log($from) =~ /\[emerg\]/;
        return unless (grep { !$before{$_} } $self->workers) == $self->_worker_count;
        # All that were there must be on their way: until then one may take requests.
        return if grep { $before{$_} } $self->workers;
        return $wait eq 'new' || !grep { alive($_) } keys %before;
    }, $timeout);
    return $done && !$refused;
}

# Sends the signal (KILL) to one worker and waits until the master has replaced it;
# returns the pid of the replacement. respawn => 0: only until it is gone.
sub kill_worker {
    my ($self, $pid, $signal, %opt) = @_;
    my %before = map { $_ => 1 } $self->workers;
    kill defined $signal ? $signal : 'KILL', $pid;
    wait_until(sub { !alive($pid) }, 10 * time_scale()) or die "worker $pid did not end\n";
    return 1 if defined $opt{respawn} && !$opt{respawn};
    my $new;
    wait_until(sub { ($new) = grep { !$before{$_} } $self->workers }, 10 * time_scale())
        or die "no new worker came for $pid\n";
    return $new;
}

# Binary upgrade, for a node with daemon => 1. upgrade (USR2) returns the pid of the new
# master once its workers are there; the old master and its workers run on.
# Then either finish_upgrade or rollback.
sub upgrade {
    my ($self, %opt) = @_;
    my $old = $self->{old_pid} = $self->{pid};
    $self->signal('USR2');
    my $new;
    wait_until(sub {
        $new = $self->_pid_in_file;
        $new && $new != $old && $self->workers($new) == $self->_worker_count;
    }, $opt{timeout} || 10 * time_scale()) or die "no new master came\n";
    return $self->{pid} = $new;
}

# WINCH: the workers of the old master end, gracefully.
sub winch_old {
    my ($self) = @_;
    kill 'WINCH', $self->{old_pid};
    # The new master is a child of the old one too, and stays.
    my $old = $self->{old_pid};
    return wait_until(sub { !grep { $_ != $self->{pid} } children($old) }, 10 * time_scale());
}

sub finish_upgrade {
    my ($self) = @_;
    kill 'QUIT', $self->{old_pid};
    my $old = $self->{old_pid};
    return unless wait_until(sub { !alive($old) }, 10 * time_scale());
    delete $self->{old_pid};
    return 1;
}

# Back to the old binary: its workers again when winch_old ended them, and the new
# master quits.
sub rollback {
    my ($self) = @_;
    my $new = $self->{pid};
    my $old = delete $self->{old_pid};
    # While another master runs, HUP only adds workers: to those that are still there too.
    if (!$self->workers($old)) {
        kill 'HUP', $old;
        wait_until(sub { $self->workers($old) == $self->_worker_count }, 10 * time_scale()) or return;
    }
    kill 'QUIT', $new;
    # Until the old master has its pid file back it ignores the next USR2.
    wait_until(sub { !alive($new) && ($self->_pid_in_file || 0) == $old }, 10 * time_scale()) or return;
    return $self->{pid} = $old;
}

# Logs

sub log_file { return "$_[0]{dir}/logs/error.log" }
sub log_size { my ($self) = @_; return -s $self->log_file || 0 }

# The text from an offset (as log_size gave it) on.
sub error_log { my ($self, $from) = @_; return slurp($self->log_file, $from || 0) }
sub access_log { my ($self) = @_; return slurp("$self->{dir}/logs/access.log") }

# The lines that match.
sub grep_log {
    my ($self, $pattern, $from) = @_;
    return grep { $_ =~ $pattern } split /\n/, $self->error_log($from);
}

# Waits for a line that matches, and returns it.
sub wait_log {
    my ($self, $pattern, $timeout, $from) = @_;
    my $line;
    wait_until(sub { ($line) = $self->grep_log($pattern, $from) },
        defined $timeout ? $timeout : 5 * time_scale()) or return;
    return $line;
}

# Which lines of the log should not be there: all [alert], [emerg], crashes and
# sanitizer reports, and what valgrind found, besides those allowed; and which
# allowed ones are not there as often as said.
sub _complaints {
    my ($self, $allow) = @_;
    my @bad = bad_log_lines($self->error_log);
    my @complaints;
    for my $rule (@$allow) {
        my ($pattern, $count) = @$rule;
        my @rest = grep { $_ !~ $pattern } @bad;
        my $found = @bad - @rest;
        push @complaints, "$found lines instead of $count match $pattern" if $found != $count;
        @bad = @rest;
    }
    push @complaints, @bad;
    push @complaints, split /\n/, valgrind_reports("$self->{dir}/logs");
    # Before the configuration is read, and after a crash of the loader, only stderr
    # has it.
    push @complaints, grep { /Sanitizer|panicked at/ } split /\n/, slurp("$self->{dir}/logs/stderr.log");
    return @complaints;
}

# One test: the log has no alarming line besides those allowed, each of which
# appears exactly so many times: allow => [[qr/.../, 1], ...]. The log is checked
# again when the test ends (workers complain while they quit), with the same
# allowances; a log that no test ever checked then has to be clean by itself.
sub log_is_clean {
    my ($self, %opt) = @_;
    my $name = defined $opt{name} ? $opt{name} : 'no alarming line in the error log';
    $self->{allowed} = $opt{allow} || [];
    my @complaints = $self->_complaints($self->{allowed});
    $self->{reported} = { map { $_ => 1 } @complaints };
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    Test::More::ok(!@complaints, $name) or Test::More::diag(join "\n", @complaints);
    return !@complaints;
}

# The last lines of the log as a diagnostic, for a test that has failed.
sub diag_log {
    my ($self, $count) = @_;
    my @lines = split /\n/, $self->error_log;
    splice @lines, 0, @lines - ($count || 20) if @lines > ($count || 20);
    Test::More::diag("end of $self->{dir}/logs/error.log:\n", join "\n", @lines);
    return;
}

# SIGQUIT first, so that a connection that was forgotten shows in the log.
on_exit(sub {
    for my $node (@NODES) {
        kill 'QUIT', $node->{old_pid} if $node->{old_pid};
        $node->signal('QUIT') if $node->running;
    }
    for my $node (@NODES) {
        my $quit = $node->quit(timeout => 3 * time_scale());
        $node->stop unless $quit;
        my @complaints = grep { !$node->{reported}{$_} } $node->_complaints($node->{allowed});
        # Cut off by us, a worker complains of each connection that it still had.
        @complaints = grep { !/open socket #\d+ left in connection|aborting$/ } @complaints unless $quit;
        next unless @complaints;
        print STDERR map({ "# $_\n" } 'in an error log, at the end of the test:', @complaints);
        fail_at_exit();
    }
});

1;
