package RegistryTest::Sentinel;

# Sentinels that watch a master of RegistryTest::Redis and its replicas, and make a
# replica the master when it is gone.

use strict;
use warnings;

use RegistryTest::Process qw(free_port temp_dir slurp spew spawn alive stop_process wait_until time_scale find_program);
use RegistryTest::Resp;

# master: the one to watch; replicas: an array of those that stand behind it. service: its name
# (main); count: of sentinels (1); password: theirs.
sub new {
    my ($class, %opt) = @_;
    my $self = bless { service => 'main', count => 1, replicas => [], %opt }, $class;
    $self->{quorum} = int($self->{count} / 2) + 1;
    $self->_start_one for 1 .. $self->{count};
    my $replicas = @{ $self->{replicas} };
    my $others = $self->{count} - 1;
    my $ready = wait_until(sub {
        for my $port (@{ $self->{ports} }) {
            my $is = eval { $self->_master($port) } or return;
            return unless $is->{'num-slaves'} == $replicas && $is->{'num-other-sentinels'} == $others;
            # An address that it does not reach is one that it would not promote.
            return if grep { $_->{flags} ne 'slave' } $self->_known($port, 'REPLICAS');
            return if grep { $_->{flags} ne 'sentinel' } $self->_known($port, 'SENTINELS');
        }
        return 1;
    }, 20 * time_scale());
    die "the sentinels do not see all\n" unless $ready;
    return $self;
}

sub _start_one {
    my ($self) = @_;
    my ($dir, $port) = (temp_dir(), free_port());
    my $name = $self->{service};
    # Sentinel writes its state into this file.
    spew("$dir/sentinel.conf", join "\n",
        'bind 127.0.0.1', "port $port", "dir $dir", "logfile $dir/sentinel.log", "pidfile $dir/sentinel.pid",
        "sentinel monitor $name 127.0.0.1 " . $self->{master}->port . " $self->{quorum}",
        "sentinel down-after-milliseconds $name " . 500 * time_scale(), "sentinel failover-timeout $name " . 6000 * time_scale(),
        "sentinel parallel-syncs $name 2",
        defined $self->{master}{password} ? "sentinel auth-pass $name $self->{master}{password}" : (),
        defined $self->{password} ? "requirepass $self->{password}" : (),
        defined $self->{password} && $self->{count} > 1 ? "sentinel sentinel-pass $self->{password}" : (), '');
    my $pid = spawn([ find_program('redis-sentinel'), "$dir/sentinel.conf" ], stdout => "$dir/output", stderr => "$dir/output");
    push @{ $self->{ports} }, $port;
    push @{ $self->{pids} }, $pid;
    push @{ $self->{dirs} }, $dir;
    wait_until(sub { eval { $self->_call($port, 'PING') } || !alive($pid) }, 10 * time_scale());
    alive($pid) or die "a sentinel did not start:\n" . slurp("$dir/sentinel.log") . slurp("$dir/output");
    # It would look at what it watches every ten seconds only.
    $self->_call($port, SENTINEL => DEBUG => 'info-period' => 200, 'publish-period' => 200, 'ask-period' => 200, 'ping-period' => 200);
    return;
}

sub _call {
    my ($self, $port, @words) = @_;
    my %password = defined $self->{password} ? (password => $self->{password}) : ();
    my $client = $self->{clients}{$port} ||= RegistryTest::Resp->new("127.0.0.1:$port", %password);
    return $client->call(@words);
}

sub _known { my ($self, $port, $what) = @_; return map { +{@$_} } @{ $self->_call($port, SENTINEL => $what => $self->{service}) } }
sub _master { my ($self, $port) = @_; return { @{ $self->_call($port, SENTINEL => MASTER => $self->{service}) } } }

sub ports { return @{ $_[0]{ports} } }

# As the directive redis takes it.
sub url {
    my ($self, %opt) = @_;
    my $hosts = join ',', map { "127.0.0.1:$_" } $self->ports;
    my $who = defined $self->{master}{password} ? ":$self->{master}{password}@" : '';
    my $query = defined $self->{password} ? "?sentinel_password=$self->{password}" : '';
    return "redis+sentinel://$who$hosts/$self->{service}/" . ($opt{db} || 0) . $query;
}

# The port of the master that they name now.
sub master_port {
    my ($self) = @_;
    return $self->_call($self->{ports}[0], SENTINEL => 'GET-MASTER-ADDR-BY-NAME' => $self->{service})->[1];
}

# Waits until they name another master than the one with this port, which takes writes; returns it.
sub promoted {
    my ($self, $old, @all) = @_;
    return wait_until(sub {
        my $port = $self->master_port;
        return if $port == $old;
        my ($new) = grep { $_->port == $port } @all;
        return $new && eval { $new->info('replication')->{role} eq 'master' } && $new;
    }, 30 * time_scale());
}

# Asks for a failover with nothing being broken, as soon as there is a replica that may be the master.
sub failover {
    my ($self) = @_;
    return wait_until(sub { eval { $self->_call($self->{ports}[0], SENTINEL => FAILOVER => $self->{service}) } }, 20 * time_scale());
}

sub stop {
    my ($self) = @_;
    $self->{clients} = {};
    stop_process($_, TERM => 5) for @{ $self->{pids} };
    return;
}

1;
